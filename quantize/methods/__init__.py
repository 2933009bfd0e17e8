"""Methods of quantizing, a module each over one interface, :class:`~.base.Quantizer`."""

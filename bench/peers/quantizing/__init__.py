"""Tools that quantize, and ours, on one model, one text and one machine: quality, time, memory.

``llm_compressor``, ``gptq_model``, ``auto_awq`` and ``bits_and_bytes`` run in a Python that has the
tool and need nothing of Halfbyte, so that no two tools share an environment:

    PYTHONPATH=bench/peers PEER/bin/python -m quantizing.gptq_model MODEL OUT TEXT --desc-act

``python -m halfbyte.bench.peers.quantizing`` runs all of them and ours, and judges the outputs.
"""

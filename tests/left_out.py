"""What older versions of Triton leave out of PTX, and edits that put it in (docs/kernels.md)."""

from __future__ import annotations

import triton

from halfbyte.engine.backends.gpu_choice import FENCED_TRITON
from halfbyte.kernels.codegen.launcher import PtxEdit
from halfbyte.kernels.device.versions import version_numbers

FENCED = version_numbers(triton.__version__, 3) >= FENCED_TRITON
"""Whether Triton puts a fence between copies and products of warp groups (docs/kernels.md)."""
FENCE = PtxEdit(r"wgmma\.fence", r"fence.proxy.async.shared::cta;\n\twgmma.fence")
WAIT = PtxEdit(r"(wgmma\.commit_group\S*;)", r"\1\n\twgmma.wait_group.sync.aligned 0;")
AGAIN = PtxEdit(r"(wgmma\.mma_async)", r"wgmma.fence.sync.aligned;\n\t\1")
LEFT_OUT = [
    (r"without fence\.proxy\.async", FENCE, "no fence between copies and products of warp groups"),
    # The assembler says so (C7515) and puts the waits there.
    (r"^EarlyReadFault", WAIT, "registers of products change before the wait for these"),
    # triton-lang/triton 9530.
    (r"no wgmma\.fence", AGAIN, "registers of products change after the fence before these"),
]

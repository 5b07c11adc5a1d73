"""What the CPU that numba compiles for can do, asked once; code is chosen by it when it is built.

numba's cache is keyed by the same CPU and features, so machine code never travels to a lesser one.
"""

from numba.core import config
from numba.core.codegen import get_host_cpu_features


def _features() -> frozenset[str]:
    """Names of LLVM's features; NUMBA_CPU_FEATURES, which the compiler obeys, goes first."""
    asked = config.CPU_FEATURES
    flags = get_host_cpu_features() if asked is None else asked
    return frozenset(flag[1:] for flag in flags.split(",") if flag.startswith("+"))


FEATURES = _features()
HAS_AVX512 = "avx512f" in FEATURES and "avx512vl" in FEATURES and "avx512bw" in FEATURES
# vdpbf16ps: two bfloat16 products added to a float32, in one instruction.
HAS_BF16_DOT = HAS_AVX512 and "avx512bf16" in FEATURES
# AMX, for which we have no kernel: 8 times the rate of vdpbf16ps on paper.
HAS_BF16_MATRICES = "amx-bf16" in FEATURES
VECTOR_BYTES = 64 if HAS_AVX512 else 32

"""What a program may rely on in the CPU, compared between two hosts before a move.

A program picks its instructions when it starts (libc and compilers dispatch on cpuid), so the
destination must offer all that the source offered. The XSAVE area matters too: a parked thread's
registers travel as the kernel wrote them into its signal frame.
"""

import re
from functools import cache

from optmigd.enclave_shim import linux

# The flags of /proc/cpuinfo that name instructions or registers a program can use. The others
# describe the kernel, power management, virtualisation or mitigations.
_USABLE = re.compile(
    r"""^(?:
        fpu|tsc|cx8|cx16|cmov|mmx|mmxext|3dnow|3dnowext|fxsr|sse|sse2|pni|ssse3|sse4_1|sse4_2|sse4a
        |misalignsse|lahf_lm|abm|popcnt|fma|fma4|xop|tbm|f16c|movbe|aes|vaes|pclmulqdq|vpclmulqdq
        |sha_ni|sha512|sm3|sm4|gfni|rdrand|rdseed|adx|bmi1|bmi2|avx.*|amx_.*|xsave|xsaveopt|xsavec
        |fsgsbase|rdpid|rdtscp|clflush|clflushopt|clwb|clzero|prefetchwt1|3dnowprefetch|lwp|rtm|hle
        |erms|fsrm|fsrs|fzrm|movdiri|movdir64b|serialize|waitpkg|enqcmd|cldemote|pku|ospke|cmpccxadd
        |raoint|prefetchi|umip|syscall|lm|uintr|ptwrite|apx
    )$""",
    re.VERBOSE,
)


@cache
def features() -> tuple[str, ...]:
    """This CPU's instruction-set features, sorted."""
    with open("/proc/cpuinfo") as cpuinfo:
        for line in cpuinfo:
            if line.startswith("flags"):
                return usable(line.partition(":")[2].split())
    return ()


def usable(flags: list[str]) -> tuple[str, ...]:
    """The flags that a program can notice, sorted."""
    return tuple(sorted({flag for flag in flags if _USABLE.match(flag)}))


@cache
def xsave_bytes() -> int:
    """Bytes of the largest signal frame of this host: it grows with the XSAVE area."""
    return linux.signal_frame_bytes()


def missing(source: list[str], destination: tuple[str, ...]) -> list[str]:
    """The features that the source has and the destination lacks, sorted."""
    return sorted(set(source) - set(destination))

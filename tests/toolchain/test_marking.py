"""The marking pass: what it finds in IR, what it refuses, and how few marks it needs."""

import pytest

from optmigd.enclave_shim.toolchain.marking.assembly import may_write_anywhere
from optmigd.enclave_shim.toolchain.marking.instrument import instrument

MEMORY = "~{memory},~{flags}"


def function(body: str, parameters: str = "ptr %p, i64 %n") -> str:
    return f"define void @f({parameters}) {{\nentry:\n{body}\n  ret void\n}}\n"


def marks(body: str, parameters: str = "ptr %p, i64 %n") -> int:
    found = instrument(function(body, parameters), "f.c")
    assert found.blockers == []
    return found.text.count("call ptr asm") + found.text.count("call { ptr, ptr } asm")


@pytest.mark.parametrize(
    "body",
    [
        "  store i8 1, ptr %p, align 1",
        "  store volatile i64 1, ptr %p, align 8, !tbaa !4",
        "  store atomic i32 1, ptr %p release, align 4",
        '  store atomic i32 1, ptr %p syncscope("singlethread") seq_cst, align 4',
        "  store { i64, ptr } { i64 1, ptr null }, ptr %p, align 8",
        "  store <4 x i32> <i32 1, i32 2, i32 3, i32 4>, ptr %p, align 4",
        "  store x86_fp80 0xK00000000000000000000, ptr %p, align 16",
        "  %a = atomicrmw add ptr %p, i64 1 monotonic, align 8",
        "  %a = atomicrmw volatile xchg ptr %p, ptr null seq_cst, align 8",
        "  %a = cmpxchg weak ptr %p, i128 0, i128 1 acq_rel monotonic, align 16",
        "  call void @llvm.memcpy.p0.p0.i64(ptr align 8 %p, ptr %p, i64 96, i1 false)",
        "  tail call void @llvm.memset.p0.i64(ptr noundef align 1 %p, i8 0, i64 4096, i1 false)",
        "  call void @llvm.masked.store.v8i32.p0(<8 x i32> %v, ptr align 4 %p, <8 x i1> %m)",
        "  call void @llvm.va_start.p0(ptr %p)",
        "  %r = call i32 @setjmp(ptr noundef %p) #2",
        f'  call void asm sideeffect "incl $0", "=*m,*m,{MEMORY}"(ptr elementtype(i32) %p, '
        "ptr elementtype(i32) %p)",
        "  store i32 1, ptr getelementptr inbounds (i8, ptr @g, i64 16), align 4",
    ],
)
def test_a_write_is_marked(body: str) -> None:
    assert marks(body, "ptr %p, <8 x i32> %v, <8 x i1> %m") == 1


def test_each_lane_of_a_scatter_is_marked() -> None:
    body = (
        "  call void @llvm.masked.scatter.v4i32.v4p0(<4 x i32> %v, <4 x ptr> align 4 %a, "
        "<4 x i1> %m)"
    )
    assert marks(body, "<4 x i32> %v, <4 x ptr> %a, <4 x i1> %m") == 4


def test_the_stack_is_not_marked() -> None:
    body = "  %a = alloca [9 x i64], align 8\n  %e = getelementptr i64, ptr %a, i64 %n\n"
    assert marks(body + "  store i64 1, ptr %e, align 8") == 0
    assert marks("  store i64 1, ptr %p, align 8", "ptr byval(i64) align 8 %p") == 0


def test_writes_that_differ_by_a_constant_share_a_mark_between_calls() -> None:
    pair = (
        "  store i64 1, ptr %p, align 8\n"
        "{between}"
        "  %q = getelementptr i8, ptr %p, i64 24\n"
        "  store i64 2, ptr %q, align 8"
    )
    assert marks(pair.format(between="")) == 1
    assert marks(pair.format(between="  call void @g()\n")) == 2


def test_a_growing_address_is_checked_only_where_it_enters_a_page() -> None:
    loop = """  br label %ahead
ahead:
  br label %loop
loop:
  %i = phi i64 [ 0, %ahead ], [ %j, %loop ]
  %e = getelementptr i32, ptr %p, i64 %i
  store i32 1, ptr %e, align 4
  %j = add i64 %i, 1
  %done = icmp eq i64 %j, %n
  br i1 %done, label %end, label %loop
end:"""
    text = instrument(function(loop), "f.c").text
    before, _, inside = text.partition("\nloop:")
    assert "movb" in before
    assert "subsection" in inside
    assert "testl $$4092" in inside
    # with a call in it, the slots do not outlive a turn
    assert (
        "subsection"
        not in instrument(function(loop.replace("  %j =", "  call void @g()\n  %j =")), "f.c").text
    )


def test_a_store_past_the_caches_becomes_an_ordinary_one() -> None:
    body = "  store i64 1, ptr %p, align 8, !nontemporal !3"
    assert "nontemporal" not in instrument(function(body), "f.c").text


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (f'  call void asm sideeffect "rep stosb", "{MEMORY}"()', "rep stosb"),
        (f'  call void asm sideeffect "movq $$1, (%rax)", "{MEMORY}"()', "(%rax)"),
        ("  call void @llvm.x86.tilestored64(i16 1, i16 1, ptr %p, i64 1)", "tilestored64"),
        ("  store i64 1, ptr addrspace(257) %p, align 8", "not understood"),
    ],
)
def test_what_cannot_be_marked_is_refused_with_its_source(body: str, why: str) -> None:
    (blocker,) = instrument(function(body), "f.c").blockers
    assert blocker.startswith("f.c: ")
    assert why in blocker


@pytest.mark.parametrize(
    ("template", "constraints", "expected"),
    [
        ("", MEMORY, False),
        ("pause", MEMORY, False),
        ("mfence", MEMORY, False),
        ("syscall", "={rax},{rax}," + MEMORY, False),
        ("lock; cmpxchgl $2, $1", "={ax},=*m,r,{ax},*m," + MEMORY, False),
        ("movq %fs:0, $0", "=r", False),
        ("cpuid", "={ax},={bx},={cx},={dx},{ax},~{flags}", False),
        ("call helper", MEMORY, True),
        ("movl $0, counter", "r," + MEMORY, True),
        ("xsave ($0)", "r," + MEMORY, True),
    ],
)
def test_assembly(template: str, constraints: str, expected: bool) -> None:
    assert may_write_anywhere(template, constraints) is expected

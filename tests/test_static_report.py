"""The compiler's report of the CUDA kernels: reading it, occupancy, and the gate against spills."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import occupancy as occ
import pytest
import sass
import static_report
from static_report import Allowed, Kernel

# ptxas 13.0: a kernel, one that calls a function with a stack frame, and one that spills.
PTXAS_LOG = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z10fwd_kernelIfEv1A' for 'sm_90'
ptxas info    : Function properties for _Z10fwd_kernelIfEv1A
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 56 registers, used 1 barriers, 2048 bytes smem
ptxas info    : Compile time = 267.394 ms
ptxas info    : Compiling entry function '_Z12stack_kernelPfi' for 'sm_90'
ptxas info    : Function properties for _Z12stack_kernelPfi
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers, 160 bytes cumulative stack size
ptxas info    : Compile time = 4.711 ms
ptxas info    : Function properties for _Z4deepPfi
    160 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function '_Z12spill_kernelPf' for 'sm_90'
ptxas info    : Function properties for _Z12spill_kernelPf
    144 bytes stack frame, 224 bytes spill stores, 1132 bytes spill loads
ptxas info    : Used 168 registers, used 0 barriers, 144 bytes cumulative stack size, 560 bytes cmem[0]
"""

PTX = """\
.visible .entry _Z10fwd_kernelIfEv1A(
\t.param .align 8 .b8 _Z10fwd_kernelIfEv1A_param_0[56]
)
.maxntid 128, 1, 1
.minnctapersm 4
{
\t.loc\t1 26 0
\t.loc\t1 30 5
\t.loc\t1 8 3, function_name $L__info_string0, inlined_at 1 30 5
\t.loc\t2 4 1, function_name $L__info_string1, inlined_at 1 8 3
\tadd.f32 %f1, %f2, %f3;
}
.entry _Z12stack_kernelPfi(
\t.param .u64 _Z12stack_kernelPfi_param_0
)
{
}
\t.section\t.debug_str
\t{
$L__info_string0:
.b8 95,90,49,102
.b8 118,0
$L__info_string1:
.b8 95,90,49,103,118,0

\t}
"""

# A loop that multiplies around a loop that does not, and a second loop that multiplies; padding at the end.
LISTING = """\
.text._Z1kv:
\t//## File ".nv_debug_ptx_txt", line 7
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_0:
\t//## File ".nv_debug_ptx_txt", line 11
        /*0010*/                   FFMA R0, R1, R2, R0 ;
.L_x_1:
        /*0020*/                   SHFL.BFLY PT, R3, R0, R4, 0x1f ;
        /*0030*/               @P0 BRA `(.L_x_1) ;
        /*0040*/                   IMAD.MOV.U32 R5, RZ, RZ, R0 ;
        /*0050*/              @!P1 BRA `(.L_x_0) ;
.L_x_2:
        /*0060*/                   DMUL R6, R6, R8 ;
        /*0070*/                   STL [R1], R6 ;
        /*0080*/              @UP0 BRA `(.L_x_2) ;
        /*0090*/                   EXIT ;
.L_x_3:
        /*00a0*/                   BRA `(.L_x_3);
        /*00b0*/                   NOP;
"""


def kernel(name: str, **sizes: int) -> Kernel:
    launch = {"label": "", "threads": 128, "dynamic_shared": 0, "blocks": 4, "warps": 16, "limit": "blocks"}
    return Kernel(name, "a.cu", launches=[launch], **sizes)


@pytest.fixture(autouse=True)
def no_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launches of the real kernels name kernels that a test does not have."""
    monkeypatch.setattr(static_report, "LAUNCHES", {})


def test_ptxas_log() -> None:
    sizes = static_report.parse_ptxas(PTXAS_LOG)
    assert list(sizes) == ["_Z10fwd_kernelIfEv1A", "_Z12stack_kernelPfi", "_Z4deepPfi", "_Z12spill_kernelPf"]
    no_local = {"stack": 0, "spill_stores": 0, "spill_loads": 0}
    assert sizes["_Z10fwd_kernelIfEv1A"] == {**no_local, "registers": 56, "shared": 2048}
    assert sizes["_Z12stack_kernelPfi"] == {**no_local, "registers": 32, "stack": 160}
    assert sizes["_Z4deepPfi"] == {**no_local, "stack": 160}
    spilled = {"stack": 144, "spill_stores": 224, "spill_loads": 1132, "registers": 168}
    assert sizes["_Z12spill_kernelPf"] == spilled


def test_launch_bounds_from_ptx() -> None:
    assert static_report.parse_entries(PTX) == {"_Z10fwd_kernelIfEv1A": 128, "_Z12stack_kernelPfi": None}
    assert static_report.parse_entries(".entry k(.param .u64 p)\n.maxntid 32, 4, 2\n{") == {"k": 256}


@pytest.mark.parametrize(
    ("full", "short"),
    [
        ("void glassconv::(anonymous namespace)::f_kernel<float>(glassconv::A<float>)", "f_kernel<float>"),
        ("glassconv::f_kernel(int, float*)", "f_kernel"),
        ("void f<glassconv::PathSet{1, 2, 14u}, float>(int)", "f<PathSet{1, 2, 14u}, float>"),
        ("void cub::CUB_300001_SM_900::ScanKernel<cub::CUB_300001_SM_900::P>()", "ScanKernel<P>"),
        ("void _INTERNAL_42d1_15_a_cu_23_28::glassconv::f<_INTERNAL_42d1_15_a_cu_23_28::P>()", "f<P>"),
    ],
)
def test_short_names(full: str, short: str) -> None:
    assert sass.short_name(full) == short


def test_instructions_by_class() -> None:
    code = sass.parse(LISTING)["_Z1kv"]
    expected = {"LDC": 1, "FFMA": 1, "SHFL": 1, "move": 1, "DMUL": 1, "STL": 1, "branch": 5}
    assert code.counts() == Counter(expected)


def test_loops_that_multiply() -> None:
    loops = sass.multiplying_loops(sass.parse(LISTING)["_Z1kv"], sass.Inlining(PTX))
    assert [loop.instructions for loop in loops] == [5, 3]
    assert loops[0].counts == Counter({"FFMA": 1, "SHFL": 1, "move": 1, "branch": 2})
    assert loops[0].function == "_Z1gv"


def test_functions_inlined_at_a_line() -> None:
    inlining = sass.Inlining(PTX)
    assert inlining.functions(8) == []
    assert inlining.functions(9) == ["_Z1fv"]
    assert inlining.functions(11) == ["_Z1fv", "_Z1gv"]


def test_edge_total_takes_the_largest_cases() -> None:
    # (0,0) and its like have one path each; (1,1) has all of l_out 0, 1, 2 = bits 7
    def loop(l_in: int, l_sh: int, degrees: int, instructions: int) -> dict[str, object]:
        return {
            "function": f"add_item<PathSet{{{l_in}, {l_sh}, {degrees}u}}",
            "instructions": instructions,
        }

    loops = [loop(0, 0, 1, 10), loop(0, 1, 2, 20), loop(1, 0, 2, 20), loop(1, 1, 1, 30), loop(1, 1, 2, 40)]
    assert sass.edge_total(loops, 1) == (120, 5)
    assert sass.edge_total([*loops, loop(1, 1, 3, 50)], 1) == (100, 4)
    assert sass.edge_total(loops[:-1], 1) is None


# By hand: registers of a warp in units of 256, warps of a multiprocessor's 65536 registers in quarters of it,
# shared memory with 1 KiB for the system, in units of 128 bytes.
@pytest.mark.parametrize(
    ("arch", "registers", "n_threads", "shared", "blocks", "limit"),
    [
        ("9.0", 32, 128, 0, 16, "warps"),  # 64 warps / 4
        ("9.0", 32, 32, 0, 32, "blocks"),
        ("12.0", 32, 32, 0, 24, "blocks"),
        ("12.0", 32, 128, 0, 12, "warps"),  # 48 warps / 4
        ("9.0", 92, 128, 0, 5, "registers"),  # 92 -> 96 registers: 3072 a warp, 5 warps in each quarter
        ("9.0", 168, 128, 0, 3, "registers"),  # 5376 a warp, 3 in each quarter
        ("8.0", 255, 512, 0, 0, "registers"),  # 8192 a warp x 16 = twice what there is
        ("9.0", 64, 128, 48 * 1024, 4, "shared memory"),  # 228 / 49
        ("8.0", 64, 128, 48 * 1024, 3, "shared memory"),  # 164 / 49
        ("12.0", 64, 128, 48 * 1024, 2, "shared memory"),  # 100 / 49
        ("9.0", 64, 128, 228 * 1024, 0, "shared memory"),
    ],
)
def test_occupancy(arch: str, registers: int, n_threads: int, shared: int, blocks: int, limit: str) -> None:
    found = occ.occupancy(arch, registers, n_threads, shared)
    assert (found.blocks, found.limit) == (blocks, limit)
    assert found.warps == blocks * n_threads // 32


def test_gate_passes_clean_kernels() -> None:
    assert static_report.gate([kernel("f_kernel<double>", registers=255)], "9.0", []) == []


@pytest.mark.parametrize("sizes", [{"stack": 16}, {"spill_stores": 8}, {"spill_loads": 4}])
def test_gate_names_what_spills(sizes: dict[str, int]) -> None:
    [line] = static_report.gate([kernel("f_kernel<double>", **sizes)], "9.0", [])
    for word in ("sm_90", "a.cu", "f_kernel<double>", str(*sizes.values())):
        assert word in line


def test_gate_counts_local_instructions() -> None:
    with_local = kernel("f_kernel")
    with_local.instructions = {"total": 9, "STL": 2}
    [line] = static_report.gate([with_local], "9.0", [])
    assert "2 instructions" in line


def test_gate_exceptions() -> None:
    spills = kernel("f_kernel<double>", spill_stores=8, spill_loads=16)
    allowed = Allowed("f_kernel<double>", "9.0", 16, "a reason")
    assert static_report.gate([spills], "9.0", [allowed]) == []
    [too_much] = static_report.gate([spills], "9.0", [Allowed("f_kernel<*", "9.0", 15, "a reason")])
    assert "at most 15 bytes" in too_much
    assert static_report.gate([spills], "9.0", [Allowed("f_kernel<*", "*", 16, "a reason")]) == []
    [elsewhere] = static_report.gate([spills], "8.0", [allowed])
    assert "at most 0 bytes" in elsewhere


def test_gate_refuses_unused_exceptions() -> None:
    clean = kernel("f_kernel<double>")
    [line] = static_report.gate([clean], "9.0", [Allowed("f_kernel<double>", "9.0", 16, "a reason")])
    assert line.startswith("unused exception")
    assert static_report.gate([clean], "8.0", [Allowed("f_kernel<double>", "9.0", 16, "a reason")]) == []


@pytest.mark.parametrize("name", ["conv_forward_kernel<float>", "conv_backward_kernel<float>"])
def test_gate_never_excepts_the_main_kernels(name: str) -> None:
    lines = static_report.gate([kernel(name, stack=8)], "9.0", [Allowed(name, "9.0", 8, "a reason")])
    assert any("expected no exception" in line for line in lines)
    assert any("at most 0 bytes" in line for line in lines)


def test_gate_wants_launch_bounds_and_launches_of_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    [line] = static_report.gate([Kernel("f_kernel<int>", "a.cu")], "9.0", [])
    assert "__launch_bounds__" in line
    assert static_report.gate([Kernel("DeviceScanKernel<int>", "a.cu")], "9.0", []) == []
    monkeypatch.setattr(static_report, "LAUNCHES", {"g_kernel": [("small", 128, 0)]})
    [line] = static_report.gate([kernel("f_kernel")], "9.0", [])
    assert "no kernel is called g_kernel" in line


def test_gate_refuses_launches_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_report, "LAUNCHES", {"f_kernel": [("large", 128, 200 * 1024)]})
    large = Kernel("f_kernel<float>", "a.cu", registers=32)
    static_report.add_launches([large], "8.0")
    [line] = static_report.gate([large], "8.0", [])
    assert "'large' does not fit" in line


SOURCE = """\
template <class T>
__global__ void __launch_bounds__(64) sum_kernel(const T* in, T* out, int n) {
  T sum = 0;
#pragma unroll 1
  for (int i = threadIdx.x; i < n; i += 64) sum += in[i] * in[i + n];
  out[threadIdx.x] = sum;
}
template __global__ void sum_kernel<float>(const float*, float*, int);
template __global__ void sum_kernel<double>(const double*, double*, int);
"""


@pytest.fixture(scope="module")
def compiler() -> static_report.Compiler:
    if static_report.build_script().find_toolkit() is None:
        pytest.skip("no CUDA toolkit")
    return static_report.Compiler()


def test_a_kernel_compiled(compiler: static_report.Compiler, tmp_path: Path) -> None:
    source = tmp_path / "sum.cu"
    source.write_text(SOURCE)
    _, kernels = static_report.report(compiler, "9.0", [source], 1)
    assert [k.name for k in kernels] == ["sum_kernel<double>", "sum_kernel<float>"]
    assert all(k.max_threads == 64 and 0 < k.registers < 64 and k.constant > 0 for k in kernels)
    assert static_report.gate(kernels, "9.0", []) == []


def test_instructions_of_a_kernel_compiled(compiler: static_report.Compiler, tmp_path: Path) -> None:
    if compiler.nvdisasm is None:
        pytest.skip("nvdisasm not installed")
    source = tmp_path / "sum.cu"
    source.write_text(SOURCE)
    kernels, _ = compiler.kernels(source, "9.0")
    for k in kernels:
        product = "FFMA" if "float" in k.name else "DFMA"
        assert k.instructions is not None
        assert k.instructions[product] == 1
        [loop] = k.edge_loops
        assert (loop["LDG"], loop[product], loop["loops"]) == (2, 1, 1)


def test_markdown_names_every_kernel() -> None:
    record = dict.fromkeys(("target", "nvcc", "date", "commit", "command", "flags", "nvdisasm"))
    text = static_report.markdown(record, [kernel("f_kernel"), kernel("g_kernel")])
    assert "`f_kernel`" in text
    assert "not counted" in text

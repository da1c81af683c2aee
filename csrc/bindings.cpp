// specfast._C: everything the extension offers, top to bottom. No torch: tensors arrive as addresses, sizes and strides
// (in elements), which specfast.ops takes from torch tensors and has checked. Every call releases the interpreter lock.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <string>

#include "common/cpu.h"
#include "common/dtype.h"
#include "cpu/patch_pool.h"

namespace py = pybind11;

namespace specfast {
namespace {

void patch_pool_from_addresses(uintptr_t image, const std::string& dtype, std::array<int64_t, 3> shape,
                               std::array<int64_t, 3> strides, uintptr_t index, uintptr_t cu_bands, int64_t samples,
                               int64_t kept, int64_t patch_size, std::array<int64_t, 2> grid, uintptr_t valid,
                               uintptr_t extent, uintptr_t patches, uintptr_t average, uintptr_t maximum, int threads,
                               const std::string& capability) {
  dispatch_dtype("patch_pool", dtype, [&](auto element) {
    using T = decltype(element);
    PatchPool<T> args;
    args.image = reinterpret_cast<const T*>(image);
    args.bands = shape[0], args.height = shape[1], args.width = shape[2];
    args.stride_band = strides[0], args.stride_row = strides[1], args.stride_column = strides[2];
    args.index = reinterpret_cast<const int64_t*>(index);
    args.cu_bands = reinterpret_cast<const int32_t*>(cu_bands);
    args.valid = reinterpret_cast<const bool*>(valid);
    args.extent = reinterpret_cast<const int64_t*>(extent);
    args.samples = samples, args.kept = kept;
    args.patch_size = patch_size, args.grid_rows = grid[0], args.grid_columns = grid[1];
    args.patches = reinterpret_cast<T*>(patches);
    args.average = reinterpret_cast<T*>(average);
    args.maximum = reinterpret_cast<T*>(maximum);
    patch_pool(args, threads == 0 ? openmp_threads() : threads, capability_from_name(capability));
  });
}

}  // namespace
}  // namespace specfast

PYBIND11_MODULE(_C, module) {
  using namespace specfast;
  module.doc() = "CPU kernels of specfast, called by specfast.ops with the addresses, sizes and strides of tensors.";

  module.def(
      "cpu_capability", [] { return std::string(capability_name(best_capability())); },
      "Instruction set the kernels run with: 'baseline', 'avx2' or 'avx512'.");
  module.def("openmp", &built_with_openmp, "Whether the kernels were built with OpenMP.");
  module.def("openmp_threads", &openmp_threads, "Threads a kernel uses when not told; 1 without OpenMP.");

  module.def("patch_pool", &patch_pool_from_addresses, py::call_guard<py::gil_scoped_release>(), py::kw_only(),
             py::arg("image"), py::arg("dtype"), py::arg("shape"), py::arg("strides"), py::arg("index"),
             py::arg("cu_bands"), py::arg("samples"), py::arg("kept"), py::arg("patch_size"), py::arg("grid"),
             py::arg("valid") = 0, py::arg("extent") = 0, py::arg("patches"), py::arg("average"), py::arg("maximum"),
             py::arg("threads") = 0, py::arg("capability") = "",
             "Pool every band over a grid and gather the kept patches in one pass; csrc/cpu/patch_pool.h says how.\n\n"
             "image: any strides, dtype 'float32' or 'bfloat16'. The rest is contiguous: index int64 [B, K], cu_bands\n"
             "int32 [B + 1], valid bool [B, H, W] or 0, extent int64 [B, 2] or 0; outputs in image's dtype: patches\n"
             "[S, K, p * p], average and maximum [S, gh * gw]. threads 0: OpenMP's default.");
}

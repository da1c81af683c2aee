// specfast._C: everything the extension offers, top to bottom. No torch: tensors arrive as addresses, sizes and strides
// (in elements), which specfast.ops takes from torch tensors and has checked. Every call releases the interpreter lock.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

#include "common/cpu.h"
#include "common/dtype.h"
#include "common/float8.h"
#include "cpu/flat_buffer.h"
#include "cpu/patch_pool.h"
#include "cpu/spectral_loss.h"

#ifdef SPECFAST_WITH_CUDA
#include "cuda/device.h"
#include "cuda/element.h"
#include "cuda/flat_buffer.h"
#include "cuda/hyper_embed.h"
#include "cuda/patch_pool.h"
#endif

namespace py = pybind11;

namespace specfast {
namespace {

template <typename T>
PatchPool<T> patch_pool_arguments(uintptr_t image, std::array<int64_t, 3> shape, std::array<int64_t, 3> strides,
                                  uintptr_t index, uintptr_t cu_bands, int64_t samples, int64_t kept,
                                  int64_t patch_size, std::array<int64_t, 2> grid, uintptr_t valid, uintptr_t extent,
                                  uintptr_t patches, uintptr_t average, uintptr_t maximum) {
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
  return args;
}

void patch_pool_from_addresses(uintptr_t image, const std::string& dtype, std::array<int64_t, 3> shape,
                               std::array<int64_t, 3> strides, uintptr_t index, uintptr_t cu_bands, int64_t samples,
                               int64_t kept, int64_t patch_size, std::array<int64_t, 2> grid, uintptr_t valid,
                               uintptr_t extent, uintptr_t patches, uintptr_t average, uintptr_t maximum, int threads,
                               const std::string& capability) {
  dispatch_dtype("patch_pool", "image", dtype, [&](auto element) {
    patch_pool(patch_pool_arguments<decltype(element)>(image, shape, strides, index, cu_bands, samples, kept,
                                                       patch_size, grid, valid, extent, patches, average, maximum),
               threads == 0 ? openmp_threads() : threads, capability_from_name(capability));
  });
}

// Calls function with the tile of predictions and targets that the addresses stand for.
template <typename Function>
void with_pixel_tile(const char* op, uintptr_t prediction, const std::string& dtype, uintptr_t target,
                     const std::string& target_dtype, std::array<int64_t, 3> shape, std::array<int64_t, 2> strides,
                     uintptr_t bias, int64_t bias_stride, Function function) {
  dispatch_dtype(op, "prediction", dtype, [&](auto element) {
    dispatch_dtype(op, "target", target_dtype, [&](auto target_element) {
      using T = decltype(element);
      PixelTile<T, decltype(target_element)> tile;
      tile.prediction = reinterpret_cast<T*>(prediction);
      tile.target = reinterpret_cast<const decltype(target_element)*>(target);
      tile.bias = reinterpret_cast<const T*>(bias);
      tile.bands = shape[0], tile.tokens = shape[1], tile.pixels = shape[2];
      tile.prediction_stride = strides[0], tile.target_stride = strides[1], tile.bias_stride = bias_stride;
      function(tile);
    });
  });
}

void pixel_sums_from_addresses(uintptr_t prediction, const std::string& dtype, uintptr_t target,
                               const std::string& target_dtype, std::array<int64_t, 3> shape,
                               std::array<int64_t, 2> strides, uintptr_t bias, int64_t bias_stride, uintptr_t sums,
                               int64_t plane, uintptr_t charbonnier, int threads, const std::string& capability) {
  with_pixel_tile("pixel_sums", prediction, dtype, target, target_dtype, shape, strides, bias, bias_stride,
                  [&](const auto& tile) {
                    pixel_sums(tile, reinterpret_cast<float*>(sums), plane, reinterpret_cast<float*>(charbonnier),
                               threads == 0 ? openmp_threads() : threads, capability_from_name(capability));
                  });
}

void pixel_gradient_from_addresses(uintptr_t prediction, const std::string& dtype, uintptr_t target,
                                   const std::string& target_dtype, std::array<int64_t, 3> shape,
                                   std::array<int64_t, 2> strides, uintptr_t bias, int64_t bias_stride,
                                   uintptr_t coefficients, int64_t plane, float slope, uintptr_t dbias, int threads,
                                   const std::string& capability) {
  with_pixel_tile("pixel_gradient", prediction, dtype, target, target_dtype, shape, strides, bias, bias_stride,
                  [&](const auto& tile) {
                    pixel_gradient(tile, reinterpret_cast<const float*>(coefficients), plane, slope,
                                   reinterpret_cast<float*>(dbias), threads == 0 ? openmp_threads() : threads,
                                   capability_from_name(capability));
                  });
}

PixelLoss pixel_loss(uintptr_t sums, uintptr_t charbonnier, uintptr_t valid, std::array<int64_t, 3> shape) {
  return {reinterpret_cast<const float*>(sums),
          reinterpret_cast<const float*>(charbonnier),
          reinterpret_cast<const bool*>(valid),
          shape[0],
          shape[1],
          shape[2]};
}

// Calls function with a value of the type that deltas are sent in.
template <typename Function>
void dispatch_wire(const char* op, const std::string& name, Function function) {
  if (name == "bfloat16") {
    function(BFloat16{});
  } else if (name == "float8_e4m3fn") {
    function(Float8{});
  } else {
    check(false, op, ": wire must be bfloat16 or float8_e4m3fn; got ", name, ".");
  }
}

template <typename W>
DeltaPack<W> delta_pack_arguments(uintptr_t values, uintptr_t reference, uintptr_t residual, int64_t count,
                                  uintptr_t packed, uintptr_t scales) {
  return {reinterpret_cast<const float*>(values), reinterpret_cast<const float*>(reference),
          reinterpret_cast<float*>(residual),     count,
          reinterpret_cast<W*>(packed),           reinterpret_cast<float*>(scales)};
}

template <typename W>
DeltaAverage<W> delta_average_arguments(uintptr_t values, uintptr_t reference, uintptr_t packed, uintptr_t scales,
                                        int64_t count, int64_t members) {
  return {reinterpret_cast<float*>(values),
          reinterpret_cast<const float*>(reference),
          reinterpret_cast<const W*>(packed),
          reinterpret_cast<const float*>(scales),
          count,
          members};
}

void delta_pack_from_addresses(uintptr_t values, uintptr_t reference, uintptr_t residual, int64_t count,
                               const std::string& wire, uintptr_t packed, uintptr_t scales, int threads,
                               const std::string& capability) {
  dispatch_wire("delta_pack", wire, [&](auto element) {
    delta_pack(delta_pack_arguments<decltype(element)>(values, reference, residual, count, packed, scales),
               threads == 0 ? openmp_threads() : threads, capability_from_name(capability));
  });
}

void delta_average_from_addresses(uintptr_t values, uintptr_t reference, uintptr_t packed, uintptr_t scales,
                                  int64_t count, int64_t members, const std::string& wire, int threads,
                                  const std::string& capability) {
  dispatch_wire("delta_average", wire, [&](auto element) {
    delta_average(delta_average_arguments<decltype(element)>(values, reference, packed, scales, count, members),
                  threads == 0 ? openmp_threads() : threads, capability_from_name(capability));
  });
}

#ifdef SPECFAST_WITH_CUDA

void cuda_delta_pack_from_addresses(uintptr_t values, uintptr_t reference, uintptr_t residual, int64_t count,
                                    const std::string& wire, uintptr_t packed, uintptr_t scales, uintptr_t stream) {
  dispatch_wire("delta_pack", wire, [&](auto element) {
    cuda::delta_pack(delta_pack_arguments<decltype(element)>(values, reference, residual, count, packed, scales),
                     reinterpret_cast<cuda::Stream>(stream));
  });
}

void cuda_delta_average_from_addresses(uintptr_t values, uintptr_t reference, uintptr_t packed, uintptr_t scales,
                                       int64_t count, int64_t members, const std::string& wire, uintptr_t stream) {
  dispatch_wire("delta_average", wire, [&](auto element) {
    cuda::delta_average(delta_average_arguments<decltype(element)>(values, reference, packed, scales, count, members),
                        reinterpret_cast<cuda::Stream>(stream));
  });
}

void cuda_patch_pool_from_addresses(uintptr_t image, const std::string& dtype, std::array<int64_t, 3> shape,
                                    std::array<int64_t, 3> strides, uintptr_t index, uintptr_t cu_bands,
                                    int64_t samples, int64_t kept, int64_t patch_size, std::array<int64_t, 2> grid,
                                    uintptr_t valid, uintptr_t extent, uintptr_t patches, uintptr_t average,
                                    uintptr_t maximum, uintptr_t stream) {
  cuda::dispatch_dtype<true>("patch_pool", dtype, [&](auto element) {
    cuda::patch_pool(
        patch_pool_arguments<decltype(element)>(image, shape, strides, index, cu_bands, samples, kept, patch_size, grid,
                                                valid, extent, patches, average, maximum),
        reinterpret_cast<cuda::Stream>(stream));
  });
}

void cuda_hyper_embed_moments_from_addresses(uintptr_t patches, const std::string& dtype, uintptr_t factors_v,
                                             uintptr_t hidden, uintptr_t cu_bands, int64_t samples, int64_t tokens,
                                             int64_t pixels, int64_t rank, int64_t width, uintptr_t moments,
                                             uintptr_t sums, uintptr_t stream) {
  cuda::dispatch_dtype<false>("hyper_embed", dtype, [&](auto element) {
    using T = decltype(element);
    cuda::HyperEmbedMoments<T> args;
    args.patches = reinterpret_cast<const T*>(patches);
    args.factors_v = reinterpret_cast<const T*>(factors_v);
    args.hidden = reinterpret_cast<const T*>(hidden);
    args.cu_bands = reinterpret_cast<const int32_t*>(cu_bands);
    args.samples = samples, args.tokens = tokens, args.pixels = pixels, args.rank = rank, args.width = width;
    args.moments = reinterpret_cast<T*>(moments);
    args.sums = reinterpret_cast<T*>(sums);
    cuda::hyper_embed_moments(args, reinterpret_cast<cuda::Stream>(stream));
  });
}

void define_cuda(py::module_& module) {
  module.def("cuda_problem", &cuda::problem_of_device, py::call_guard<py::gil_scoped_release>(),
             "What keeps the CUDA kernels from running on the current device, in CUDA's words; '' if nothing does.");
  module.def("cuda_patch_pool", &cuda_patch_pool_from_addresses, py::call_guard<py::gil_scoped_release>(),
             py::kw_only(), py::arg("image"), py::arg("dtype"), py::arg("shape"), py::arg("strides"), py::arg("index"),
             py::arg("cu_bands"), py::arg("samples"), py::arg("kept"), py::arg("patch_size"), py::arg("grid"),
             py::arg("valid") = 0, py::arg("extent") = 0, py::arg("patches"), py::arg("average"), py::arg("maximum"),
             py::arg("stream"),
             "patch_pool on the current CUDA device, on a stream; also float16. csrc/cuda/patch_pool.h says how.\n\n"
             "Arguments as patch_pool's, all in device memory; images up to 4096 x 4096 pixels.");
  module.def("cuda_hyper_embed_moments", &cuda_hyper_embed_moments_from_addresses,
             py::call_guard<py::gil_scoped_release>(), py::kw_only(), py::arg("patches"), py::arg("dtype"),
             py::arg("factors_v"), py::arg("hidden"), py::arg("cu_bands"), py::arg("samples"), py::arg("tokens"),
             py::arg("pixels"), py::arg("rank"), py::arg("width"), py::arg("moments"), py::arg("sums"),
             py::arg("stream"),
             "Sums over each sample's bands of h (x) hidden and of h = V x; csrc/cuda/hyper_embed.h says how.\n\n"
             "patches [S, N, P], factors_v [S, R, P], hidden [S, k] -> moments [B, N, R, k], sums [B, N, R]; dtype\n"
             "'bfloat16' or 'float16'; contiguous, in device memory, aligned to 16 bytes.");
  module.def("cuda_delta_pack", &cuda_delta_pack_from_addresses, py::call_guard<py::gil_scoped_release>(),
             py::kw_only(), py::arg("values"), py::arg("reference"), py::arg("residual"), py::arg("count"),
             py::arg("wire"), py::arg("packed"), py::arg("scales"), py::arg("stream"),
             "delta_pack on the current CUDA device, on a stream; arguments in device memory.");
  module.def("cuda_delta_average", &cuda_delta_average_from_addresses, py::call_guard<py::gil_scoped_release>(),
             py::kw_only(), py::arg("values"), py::arg("reference"), py::arg("packed"), py::arg("scales"),
             py::arg("count"), py::arg("members"), py::arg("wire"), py::arg("stream"),
             "delta_average on the current CUDA device, on a stream; arguments in device memory.");
}

#endif  // SPECFAST_WITH_CUDA

// The architectures the CUDA kernels were compiled for: "sm_90a" is machine code, "compute_100" is PTX.
std::vector<std::string> cuda_architectures() {
  std::vector<std::string> result;
#ifdef SPECFAST_WITH_CUDA
  std::istringstream names(SPECFAST_WITH_CUDA);
  for (std::string name; names >> name;) result.push_back(name);
#endif
  return result;
}

}  // namespace
}  // namespace specfast

PYBIND11_MODULE(_C, module) {
  using namespace specfast;
  module.doc() = "Kernels of specfast, called by specfast.ops with the addresses, sizes and strides of tensors.";

  module.def(
      "cpu_capability", [] { return std::string(capability_name(best_capability())); },
      "Instruction set the kernels run with: 'baseline', 'avx2' or 'avx512'.");
  module.def("openmp", &built_with_openmp, "Whether the kernels were built with OpenMP.");
  module.def("openmp_threads", &openmp_threads, "Threads a kernel uses when not told; 1 without OpenMP.");
  module.def("cuda_built", [] { return !cuda_architectures().empty(); }, "Whether the extension holds CUDA kernels.");
  module.def("cuda_architectures", &cuda_architectures,
             "What they were compiled for: 'sm_90a' is machine code, 'compute_100' is PTX.");
#ifdef SPECFAST_WITH_CUDA
  define_cuda(module);
#endif

  module.def("patch_pool", &patch_pool_from_addresses, py::call_guard<py::gil_scoped_release>(), py::kw_only(),
             py::arg("image"), py::arg("dtype"), py::arg("shape"), py::arg("strides"), py::arg("index"),
             py::arg("cu_bands"), py::arg("samples"), py::arg("kept"), py::arg("patch_size"), py::arg("grid"),
             py::arg("valid") = 0, py::arg("extent") = 0, py::arg("patches"), py::arg("average"), py::arg("maximum"),
             py::arg("threads") = 0, py::arg("capability") = "",
             "Pool every band over a grid and gather the kept patches in one pass; csrc/cpu/patch_pool.h says how.\n\n"
             "image: any strides, dtype 'float32' or 'bfloat16'. The rest is contiguous: index int64 [B, K], cu_bands\n"
             "int32 [B + 1], valid bool [B, H, W] or 0, extent int64 [B, 2] or 0; outputs in image's dtype: patches\n"
             "[S, K, p * p], average and maximum [S, gh * gw]. threads 0: OpenMP's default.");

  module.def(
      "pixel_sums", &pixel_sums_from_addresses, py::call_guard<py::gil_scoped_release>(), py::kw_only(),
      py::arg("prediction"), py::arg("dtype"), py::arg("target"), py::arg("target_dtype"), py::arg("shape"),
      py::arg("strides"), py::arg("bias") = 0, py::arg("bias_stride") = 0, py::arg("sums"), py::arg("plane"),
      py::arg("charbonnier"), py::arg("threads") = 0, py::arg("capability") = "",
      "Sum prediction^2, prediction * target, target^2 and Charbonnier over the bands of a tile;\n"
      "csrc/cpu/spectral_loss.h says how.\n\n"
      "shape: (bands, tokens, pixels); strides: of a band of prediction and of target, whose rows are adjacent.\n"
      "bias [bands, pixels], or 0, in prediction's dtype is added. sums: float32, three planes [tokens, pixels].");
  module.def("pixel_gradient", &pixel_gradient_from_addresses, py::call_guard<py::gil_scoped_release>(), py::kw_only(),
             py::arg("prediction"), py::arg("dtype"), py::arg("target"), py::arg("target_dtype"), py::arg("shape"),
             py::arg("strides"), py::arg("bias") = 0, py::arg("bias_stride") = 0, py::arg("coefficients"),
             py::arg("plane"), py::arg("slope"), py::arg("dbias") = 0, py::arg("threads") = 0,
             py::arg("capability") = "",
             "Replace predictions by the gradient of the loss; arguments as for pixel_sums, coefficients as\n"
             "loss_coefficients makes them. dbias: float32 [bands, pixels], or 0, gets the sum over tokens added.");
  module.def(
      "loss_of_sums",
      [](uintptr_t sums, uintptr_t charbonnier, uintptr_t valid, std::array<int64_t, 3> shape, uintptr_t loss,
         const std::string& capability) {
        loss_of_sums(pixel_loss(sums, charbonnier, valid, shape), reinterpret_cast<float*>(loss),
                     capability_from_name(capability));
      },
      py::call_guard<py::gil_scoped_release>(), py::kw_only(), py::arg("sums"), py::arg("charbonnier"),
      py::arg("valid"), py::arg("shape"), py::arg("loss"), py::arg("capability") = "",
      "Three float32 numbers of a sample's sums: spectral sum, Charbonnier sum, valid pixels.\n"
      "shape: (bands, tokens, pixels).");
  module.def(
      "loss_coefficients",
      [](uintptr_t sums, uintptr_t valid, std::array<int64_t, 3> shape, float dspectral, uintptr_t coefficients,
         const std::string& capability) {
        loss_coefficients(pixel_loss(sums, 0, valid, shape), dspectral, reinterpret_cast<float*>(coefficients),
                          capability_from_name(capability));
      },
      py::call_guard<py::gil_scoped_release>(), py::kw_only(), py::arg("sums"), py::arg("valid"), py::arg("shape"),
      py::arg("dspectral"), py::arg("coefficients"), py::arg("capability") = "",
      "Fill the three planes that pixel_gradient reads, from a sample's sums.");

  module.def("delta_pack", &delta_pack_from_addresses, py::call_guard<py::gil_scoped_release>(), py::kw_only(),
             py::arg("values"), py::arg("reference"), py::arg("residual"), py::arg("count"), py::arg("wire"),
             py::arg("packed"), py::arg("scales"), py::arg("threads") = 0, py::arg("capability") = "",
             "Round values - reference + residual to 'bfloat16' or 'float8_e4m3fn', and keep in residual what that\n"
             "lost; csrc/common/flat_buffer.h says how.\n\n"
             "values, reference, residual float32 [n], packed [n], scales float32 [ceil(n / 256)], 0 for bfloat16.");
  module.def("delta_average", &delta_average_from_addresses, py::call_guard<py::gil_scoped_release>(), py::kw_only(),
             py::arg("values"), py::arg("reference"), py::arg("packed"), py::arg("scales"), py::arg("count"),
             py::arg("members"), py::arg("wire"), py::arg("threads") = 0, py::arg("capability") = "",
             "Write reference + the mean of packed [g, n] to values; scales [g, ceil(n / 256)], 0 for bfloat16.");
}

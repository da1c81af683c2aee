// Runs one operator of csrc/cuda on the emulator: run OPERATOR FOLDER name=value ...
// Tensors are the files FOLDER/<name>.bin, outputs files of their final size; every one gets memory of exactly its
// size, outputs are poisoned first. Exit code 0: done, 2: the launcher refused, 3 or a signal: the kernel did wrong.
#include <cuda_runtime.h>

#include <cstdint>
#include <fstream>
#include <iostream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/element.h"
#include "cuda/flat_buffer.h"
#include "cuda/hyper_embed.h"
#include "cuda/patch_pool.h"

namespace {

using namespace specfast;

class Case {
 public:
  Case(int argc, char** argv) : folder_(argv[2]) {
    for (int i = 3; i < argc; ++i) {
      const std::string pair = argv[i];
      values_[pair.substr(0, pair.find('='))] = pair.substr(pair.find('=') + 1);
    }
  }
  ~Case() {
    for (void* memory : memory_) free(memory);
  }

  const std::string& text(const std::string& name) const { return values_.at(name); }
  int64_t number(const std::string& name) const { return std::stoll(values_.at(name)); }

  enum Use { input, output, updated };

  // The tensor, <name>_shift elements beyond an aligned address; null if there is no such file.
  template <typename T>
  T* tensor(const std::string& name, Use use = input) {
    std::ifstream file(path(name), std::ios::binary | std::ios::ate);
    if (!file) return nullptr;
    const auto bytes = static_cast<size_t>(file.tellg());
    const size_t shift = values_.count(name + "_shift") ? number(name + "_shift") * sizeof(T) : 0;
    auto* memory = static_cast<char*>(malloc(shift + bytes));
    memory_.push_back(memory);
    file.seekg(0);
    if (use == output) {
      std::fill(memory, memory + shift + bytes, '\xFF');
    } else {
      file.read(memory + shift, static_cast<std::streamsize>(bytes));
    }
    if (use != input) outputs_.push_back({name, memory + shift, bytes});
    return reinterpret_cast<T*>(memory + shift);
  }

  void write_outputs() const {
    for (const Output& output : outputs_) {
      std::ofstream(path(output.name), std::ios::binary)
          .write(output.memory, static_cast<std::streamsize>(output.bytes));
    }
  }

 private:
  struct Output {
    std::string name;
    char* memory;
    size_t bytes;
  };
  std::string path(const std::string& name) const { return folder_ + "/" + name + ".bin"; }

  std::string folder_;
  std::map<std::string, std::string> values_;
  std::vector<void*> memory_;
  std::vector<Output> outputs_;
};

void patch_pool(Case& given) {
  cuda::dispatch_dtype<true>("patch_pool", given.text("dtype"), [&](auto element) {
    using T = decltype(element);
    PatchPool<T> args;
    args.image = given.tensor<T>("image");
    args.bands = given.number("bands"), args.height = given.number("height"), args.width = given.number("width");
    args.stride_band = given.number("stride_band"), args.stride_row = given.number("stride_row");
    args.stride_column = given.number("stride_column");
    args.index = given.tensor<int64_t>("index");
    args.cu_bands = given.tensor<int32_t>("cu_bands");
    args.valid = given.tensor<bool>("valid");
    args.extent = given.tensor<int64_t>("extent");
    args.samples = given.number("samples"), args.kept = given.number("kept");
    args.patch_size = given.number("patch_size");
    args.grid_rows = given.number("grid_rows"), args.grid_columns = given.number("grid_columns");
    args.patches = given.tensor<T>("patches", Case::output);
    args.average = given.tensor<T>("average", Case::output);
    args.maximum = given.tensor<T>("maximum", Case::output);
    cuda::patch_pool(args, nullptr);
  });
}

void hyper_embed_moments(Case& given) {
  cuda::dispatch_dtype<false>("hyper_embed", given.text("dtype"), [&](auto element) {
    using T = decltype(element);
    cuda::HyperEmbedMoments<T> args;
    args.patches = given.tensor<T>("patches");
    args.factors_v = given.tensor<T>("factors_v");
    args.hidden = given.tensor<T>("hidden");
    args.cu_bands = given.tensor<int32_t>("cu_bands");
    args.samples = given.number("samples"), args.tokens = given.number("tokens");
    args.pixels = given.number("pixels"), args.rank = given.number("rank"), args.width = given.number("width");
    args.moments = given.tensor<T>("moments", Case::output);
    args.sums = given.tensor<T>("sums", Case::output);
    cuda::hyper_embed_moments(args, nullptr);
  });
}

template <typename Function>
void with_wire(const Case& given, Function function) {
  if (given.text("wire") == "bfloat16") {
    function(BFloat16{});
  } else {
    function(Float8{});
  }
}

void delta_pack(Case& given) {
  with_wire(given, [&](auto element) {
    using W = decltype(element);
    DeltaPack<W> args;
    args.values = given.tensor<float>("values");
    args.reference = given.tensor<float>("reference");
    args.residual = given.tensor<float>("residual", Case::updated);
    args.count = given.number("count");
    args.packed = given.tensor<W>("packed", Case::output);
    args.scales = given.tensor<float>("scales", Case::output);
    cuda::delta_pack(args, nullptr);
  });
}

void delta_average(Case& given) {
  with_wire(given, [&](auto element) {
    using W = decltype(element);
    DeltaAverage<W> args;
    args.values = given.tensor<float>("values", Case::output);
    args.reference = given.tensor<float>("reference");
    args.packed = given.tensor<W>("packed");
    args.scales = given.tensor<float>("scales");
    args.count = given.number("count"), args.members = given.number("members");
    cuda::delta_average(args, nullptr);
  });
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 1;
  try {
    Case given(argc, argv);
    emulator::Block::now().order = static_cast<int>(given.number("order"));
    emulator::shared_limit = static_cast<int>(given.number("shared_limit"));
    const std::string name = argv[1];
    if (name == "patch_pool") {
      patch_pool(given);
    } else if (name == "hyper_embed_moments") {
      hyper_embed_moments(given);
    } else if (name == "delta_pack") {
      delta_pack(given);
    } else if (name == "delta_average") {
      delta_average(given);
    } else {
      return 1;
    }
    given.write_outputs();
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 2;
  }
  return 0;
}

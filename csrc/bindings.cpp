// Python bindings of what is not a tensor op: the Poisson sampler, texts in another order, the SIMD level, and what
// this build contains. Importing the module also runs the static registrations of the tensor ops.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <stdexcept>
#include <string>

#include "common/chacha20.h"
#include "cpu/fused_program.h"
#include "cpu/poisson_sampler.h"
#include "cpu/simd.h"
#include "cpu/swap_codes.h"
#include "cpu/take_texts.h"

#ifndef DPCGAN_CUDA_REASON
#define DPCGAN_CUDA_REASON "unknown"
#endif
#ifndef DPCGAN_TORCH_VERSION
#define DPCGAN_TORCH_VERSION "unknown"
#endif

namespace py = pybind11;

namespace {

dpcgan::ChaChaKey key_from_bytes(const py::bytes& bytes) {
  const std::string_view data = bytes;
  dpcgan::ChaChaKey key;
  if (data.size() != sizeof(key.word)) throw std::invalid_argument("poisson_sample: expected a key of 32 bytes");
  std::memcpy(key.word, data.data(), sizeof(key.word));
  return key;
}

py::array_t<int64_t> poisson_sample(const py::bytes& key, uint64_t step, int64_t units, double sample_rate) {
  if (units < 0 || units >= (int64_t{1} << 48))
    throw std::invalid_argument("poisson_sample: expected 0 <= units < 2^48");
  if (!(sample_rate > 0 && sample_rate <= 1))
    throw std::invalid_argument("poisson_sample: expected sample_rate in (0, 1], got " + std::to_string(sample_rate));
  const std::vector<int64_t> drawn = dpcgan::cpu::poisson_sample(key_from_bytes(key), step, units, sample_rate);
  return py::array_t<int64_t>(static_cast<py::ssize_t>(drawn.size()), drawn.data());
}

template <class T>
using Contiguous = py::array_t<T, py::array::c_style>;

// bytes: (T,) uint8  starts: (N + 1,) int32  rows: (M,) int64; returns the texts of these rows in the same form.
py::tuple take_texts(const Contiguous<uint8_t>& bytes, const Contiguous<int32_t>& starts,
                     const Contiguous<int64_t>& rows) {
  if (bytes.ndim() != 1 || starts.ndim() != 1 || rows.ndim() != 1 || starts.size() < 1)
    throw std::invalid_argument("take_texts: expected bytes (T,), starts (N + 1,) and rows (M,)");
  const dpcgan::cpu::TextColumn column{reinterpret_cast<const char*>(bytes.data()), bytes.size(), starts.data(),
                                       starts.size() - 1};
  const int64_t* wanted = rows.data();
  const int64_t count = rows.size();
  py::array_t<int32_t> taken_starts(count + 1);
  int32_t* ends = taken_starts.mutable_data();
  std::vector<int32_t> begins;
  {
    const py::gil_scoped_release others_go_on;
    begins = dpcgan::cpu::text_starts(column, wanted, count, ends);
  }
  py::array_t<uint8_t> taken(ends[count]);
  char* out = reinterpret_cast<char*>(taken.mutable_data());
  {
    const py::gil_scoped_release others_go_on;
    dpcgan::cpu::copy_texts(column, begins, ends, out);
  }
  return py::make_tuple(taken, taken_starts);
}

// Moves codes between records of a class, see cpu/swap_codes.h.
//   has: (codes, records) uint8, changed in place   classes, clusters: (records,) int64
//   weights, sizes: (records,) float64              ratios: (clusters, codes) float32
//   first, second: (pairs,) int64                   wanted: (pairs, classes) float64
void swap_codes(Contiguous<uint8_t>& has, const Contiguous<int64_t>& classes, const Contiguous<int64_t>& clusters,
                const Contiguous<double>& weights, const Contiguous<double>& sizes, const Contiguous<float>& ratios,
                const Contiguous<int64_t>& first, const Contiguous<int64_t>& second, const Contiguous<double>& wanted,
                int64_t sweeps, uint64_t seed) {
  if (has.ndim() != 2 || ratios.ndim() != 2 || wanted.ndim() != 2)
    throw std::invalid_argument("swap_codes: expected has, ratios and wanted of two dimensions");
  const int64_t records = has.shape(1), pairs = wanted.shape(0);
  if (classes.size() != records || clusters.size() != records || weights.size() != records || sizes.size() != records)
    throw std::invalid_argument("swap_codes: expected a class, a cluster, a weight and a size of each record");
  if (ratios.shape(1) != has.shape(0) || first.size() != pairs || second.size() != pairs)
    throw std::invalid_argument("swap_codes: expected a ratio of each code, and two codes of each pair");
  const dpcgan::cpu::CodeBlock block{has.mutable_data(), has.shape(0), records,       classes.data(), clusters.data(),
                                     weights.data(),     sizes.data(), ratios.data(), ratios.shape(0)};
  const dpcgan::cpu::CodePairs wanted_pairs{first.data(), second.data(), wanted.data(), pairs, wanted.shape(1)};
  const py::gil_scoped_release others_go_on;
  dpcgan::cpu::check_values(block, wanted_pairs);
  dpcgan::cpu::CodeSwaps swaps(block, wanted_pairs.class_count, seed);
  for (int64_t sweep = 0; sweep < sweeps; ++sweep) swaps.sweep(wanted_pairs);
}

py::bytes chacha20_keystream(const py::bytes& key, uint64_t nonce, uint64_t counter) {
  uint32_t words[dpcgan::kChaChaWords];
  dpcgan::chacha20_block(key_from_bytes(key), nonce, counter, words);
  return py::bytes(reinterpret_cast<const char*>(words), sizeof(words));
}

int64_t fused_workspace_floats(const std::vector<int64_t>& layers, const std::vector<double>& numbers, int64_t lanes,
                               int64_t rows, int64_t channels, int64_t length) {
  return dpcgan::cpu::parse_program("fused_workspace_floats", layers, numbers, lanes, rows, channels, length)
      .workspace_floats();
}

py::dict build_info() {
  py::dict info;
#ifdef DPCGAN_WITH_CUDA
  info["cuda"] = true;
#else
  info["cuda"] = false;
#endif
  info["cuda_reason"] = DPCGAN_CUDA_REASON;
  info["torch"] = DPCGAN_TORCH_VERSION;
  info["compiler"] = __VERSION__;
  info["simd_detected"] = dpcgan::cpu::simd_level_name(dpcgan::cpu::detected_simd_level());
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Kernels of dpcgan_fast; use dpcgan_fast.ops.";
  m.def("build_info", &build_info, "What this build contains, and why.");
  m.def("simd_level", [] { return std::string(dpcgan::cpu::simd_level_name(dpcgan::cpu::simd_level())); });
  m.def("set_simd_level", &dpcgan::cpu::set_simd_level, py::arg("name"));
  m.def("poisson_sample", &poisson_sample, py::arg("key"), py::arg("step"), py::arg("units"), py::arg("sample_rate"));
  m.def("take_texts", &take_texts, py::arg("bytes").noconvert(), py::arg("starts").noconvert(),
        py::arg("rows").noconvert());
  m.def("swap_codes", &swap_codes, py::arg("has").noconvert(), py::arg("classes").noconvert(),
        py::arg("clusters").noconvert(), py::arg("weights").noconvert(), py::arg("sizes").noconvert(),
        py::arg("ratios").noconvert(), py::arg("first").noconvert(), py::arg("second").noconvert(),
        py::arg("wanted").noconvert(), py::arg("sweeps"), py::arg("seed"));
  m.def("fused_workspace_floats", &fused_workspace_floats, "Floats that the fused path needs for a batch.");
  m.def("chacha20_keystream", &chacha20_keystream, py::arg("key"), py::arg("nonce"), py::arg("counter"),
        "One 64-byte block, for tests against published vectors.");
}

// Four codes of 2x2 windows into one byte (common/pool/packed_codes.h).
//
// Floor: 1 byte in and 1/4 byte out for each code.

#include "common/pool/packed_codes.h"
#include "cuda/launch.h"
#include "cuda/pool/pack_codes.h"
#include "cuda/row_tiles.h"
#include "cuda/vector_access.h"

namespace fastseg::cuda {
namespace {

// A thread makes kBytes bytes of a run from four times as many codes. With more than one byte, runs
// are whole tiles; a run's last single byte may hold fewer than four codes.
template <int kBytes>
__global__ void __launch_bounds__(kThreads)
    pack_codes_kernel(const uint8_t* codes, int run, uint8_t* out, RowTiles tiles) {
  const int index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= tiles.count) return;
  const Tile tile = tiles[index];
  constexpr int kCodes = kBytes * kCodesPerByte;
  const int first = tile.column * kCodes;
  const uint8_t* p = codes + int64_t{tile.plane} * run + first;
  uint8_t* to = out + int64_t{tile.plane} * packed_size(run) + tile.column * kBytes;
  if constexpr (kBytes == 1) {
    *to = fastseg::pack_codes(p, run - first < kCodes ? run - first : kCodes);
  } else {
    uint8_t in[kCodes], bytes[kBytes];
    load(p, in);
#pragma unroll
    for (int b = 0; b < kBytes; ++b) {
      bytes[b] = fastseg::pack_codes(in + b * kCodesPerByte, kCodesPerByte);
    }
    store_streaming(to, bytes);
  }
}

template <int kBytes>
void launch(const uint8_t* codes, int64_t runs, int64_t run, uint8_t* out, cudaStream_t stream) {
  launch_row_tiles(runs, 1, packed_size(run) / kBytes, [&](const RowTiles& tiles, unsigned blocks) {
    FASTSEG_LAUNCH((pack_codes_kernel<kBytes>), blocks, kThreads, 0, stream, codes,
                   static_cast<int>(run), out, tiles);
  });
}

}  // namespace

cudaError_t pack_codes(const uint8_t* codes, int64_t runs, int64_t run, uint8_t* out,
                       cudaStream_t stream) {
  constexpr int kBytes = kVectorBytes / kCodesPerByte;
  if (run % kVectorBytes == 0 && is_aligned(codes, kVectorBytes) && is_aligned(out, kBytes)) {
    launch<kBytes>(codes, runs, run, out, stream);
  } else {
    launch<1>(codes, runs, run, out, stream);
  }
  return cudaGetLastError();
}

}  // namespace fastseg::cuda

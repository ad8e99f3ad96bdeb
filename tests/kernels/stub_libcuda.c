// A CUDA driver that launches nothing and writes down what it is asked to launch: enough of one for Triton.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cuda.h"

enum { KERNELS = 64, PARAMETERS = 128, LOG = 1 << 20 };

static struct {
  uint64_t function;
  int count;
  uint32_t sizes[PARAMETERS];
} kernels[KERNELS];
static int known = 0;
static uint8_t written[LOG];
static int length = 0;
static uintptr_t functions = 0x1000;

// From here on launches of a function are written down, with parameters of these sizes.
int stub_watch(uint64_t function, const uint32_t *sizes, int count) {
  if (known == KERNELS || count > PARAMETERS) return -1;
  kernels[known].function = function;
  kernels[known].count = count;
  memcpy(kernels[known].sizes, sizes, count * sizeof *sizes);
  return known++;
}

static void write_down(const void *from, int size) {
  if (length + size > LOG) abort();
  memcpy(written + length, from, size);
  length += size;
}

// What was launched since the last time: 6 numbers a launch, the first of them what stub_watch gave, and parameters.
int stub_take(uint8_t *out) {
  int size = length;
  memcpy(out, written, size);
  length = 0;
  return size;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **parameters, void **extra) {
  for (uint64_t i = 0; i < (uint64_t)known; i++) {
    if (kernels[i].function != (uint64_t)function) continue;
    uint64_t head[6] = {i, config->gridDimX, config->gridDimY, config->blockDimX, config->sharedMemBytes,
                        (uint64_t)config->hStream};
    write_down(head, sizeof head);
    for (int k = 0; k < kernels[i].count; k++) write_down(parameters[k], kernels[i].sizes[k]);
  }
  return CUDA_SUCCESS;
}

// Not the hardware's format, but all that goes into it.
CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                const cuuint64_t *lengths, const cuuint64_t *strides, const cuuint32_t *box,
                                const cuuint32_t *steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  uint64_t words[16] = {(uint64_t)address, type | (uint64_t)rank << 8 | (uint64_t)swizzle << 16 |
                                               (uint64_t)promotion << 24 | (uint64_t)fill << 32};
  for (cuuint32_t i = 0; i < rank; i++) {
    words[2 + i] = lengths[i];
    words[11] = words[11] << 12 | box[i];
    if (i + 1 < rank) words[7 + i] = strides[i];
  }
  memcpy(map, words, sizeof words);
  return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **text) { *text = "error of the stub"; return CUDA_SUCCESS; }
CUresult cuInit(unsigned int flags) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) { *version = 12080; return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int index) { *device = index; return CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute a, CUdevice d) { *value = 232448; return CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext *context) { *context = (CUcontext)1; return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext context) { return CUDA_SUCCESS; }
CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }
CUresult cuCtxGetLimit(size_t *value, CUlimit limit) { *value = 0; return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice d) { *context = (CUcontext)1; return CUDA_SUCCESS; }
CUresult cuModuleLoadData(CUmodule *module, const void *image) { *module = (CUmodule)1; return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  *function = (CUfunction)(functions += 16);
  return CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute a, int value) { return CUDA_SUCCESS; }
CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }
CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction function, const CUlaunchConfig *config) {
  *clusters = 1;
  return CUDA_SUCCESS;
}
CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr pointer) {
  *(CUdeviceptr *)value = pointer;
  return CUDA_SUCCESS;
}
CUresult cuPointerGetAttributes(unsigned int n, CUpointer_attribute *attributes, void **values, CUdeviceptr pointer) {
  *(CUdeviceptr *)values[0] = pointer;
  return CUDA_SUCCESS;
}

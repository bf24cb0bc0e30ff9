// A CUDA driver without a GPU: what Triton and fastseg._launch call to load and launch kernels.
//
// Kernels are loaded, so that their parameters' sizes are known, and launches are written down, not
// run. Memory is the host's. Only the functions that these two call exist.

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define MOST_PARAMETERS 256
#define MOST_BYTES 2048

typedef int Status;
enum { SUCCESS = 0, INVALID = 1, NOT_FOUND = 500 };

typedef struct {
  unsigned offset, size;
} Parameter;

typedef struct {
  const unsigned char* image;
  char name[256];
  Parameter parameters[MOST_PARAMETERS];
  unsigned count;
} Function;

typedef struct {
  void* function;
  void* stream;
  unsigned grid[3], block[3];
  unsigned shared;
  unsigned attributes;
  unsigned extended;  // whether it came through cuLaunchKernelEx
  unsigned size;
  unsigned char bytes[MOST_BYTES];
} Launch;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Launch* launches;
static unsigned launched, room;
static bool recording = true;
static int capability = 90, processors = 132;
static int fails_with;
static __thread void* context;

// ---- What the tests and the benchmark ask.

EXPORT void stand_in_set(int new_capability, int new_processors) {
  capability = new_capability;
  processors = new_processors;
}
EXPORT void stand_in_record(bool on) { recording = on; }
EXPORT void stand_in_fail(int status) { fails_with = status; }
EXPORT unsigned stand_in_count(void) { return launched; }
EXPORT const Launch* stand_in_launch(unsigned i) { return &launches[i]; }
EXPORT void stand_in_clear(void) { launched = 0; }
EXPORT const char* stand_in_name(const Function* function) { return function->name; }

// ---- Kernels: of an ELF file's section .nv.info.<kernel> the entries that tell the parameters.

typedef struct {
  unsigned char identity[16];
  uint16_t type, machine;
  uint32_t version;
  uint64_t entry, programs, sections;
  uint32_t flags;
  uint16_t size, program_size, program_count, section_size, section_count, names;
} Header;

typedef struct {
  uint32_t name, type;
  uint64_t flags, address, offset, size;
  uint32_t link, info;
  uint64_t alignment, entry_size;
} Section;

static bool read_parameters(Function* f) {
  const Header* header = (const Header*)f->image;
  const Section* sections = (const Section*)(f->image + header->sections);
  const char* names = (const char*)f->image + sections[header->names].offset;
  for (unsigned i = 0; i < header->section_count; ++i) {
    const char* name = names + sections[i].name;
    if (strncmp(name, ".nv.info.", 9) != 0 || strcmp(name + 9, f->name) != 0) continue;
    const unsigned char* at = f->image + sections[i].offset;
    const unsigned char* end = at + sections[i].size;
    while (at < end) {
      const unsigned char format = at[0], attribute = at[1];
      uint16_t size;
      memcpy(&size, at + 2, 2);
      if (format == 4 && attribute == 0x17) {  // index, ordinal and offset, size from bit 18 on
        uint16_t ordinal, offset;
        uint32_t packed;
        memcpy(&ordinal, at + 8, 2);
        memcpy(&offset, at + 10, 2);
        memcpy(&packed, at + 12, 4);
        if (ordinal >= MOST_PARAMETERS) return false;
        f->parameters[ordinal] = (Parameter){offset, packed >> 18};
        if (ordinal >= f->count) f->count = ordinal + 1u;
      }
      at += 4 + (format == 4 ? size : 0);
    }
    return true;
  }
  return false;
}

EXPORT Status cuModuleLoadData(void** module, const void* image) {
  Function* f = calloc(1, sizeof(Function));
  // The caller's bytes may be gone later, and a file's size is where its sections' table ends.
  const Header* header = image;
  const size_t size = header->sections + (size_t)header->section_size * header->section_count;
  size_t most = size;
  const Section* sections = (const Section*)((const char*)image + header->sections);
  for (unsigned i = 0; i < header->section_count; ++i) {
    const size_t end = sections[i].offset + (sections[i].type == 8 ? 0 : sections[i].size);
    if (end > most) most = end;
  }
  unsigned char* copy = malloc(most);
  memcpy(copy, image, most);
  f->image = copy;
  *module = f;
  return SUCCESS;
}

EXPORT Status cuModuleGetFunction(void** function, void* module, const char* name) {
  Function* f = module;
  strncpy(f->name, name, sizeof(f->name) - 1);
  *function = f;
  return read_parameters(f) ? SUCCESS : NOT_FOUND;
}

EXPORT Status cuModuleUnload(void* module) { return SUCCESS; }

EXPORT Status cuFuncGetAttribute(int* value, int attribute, void* function) {
  *value = attribute == 0 ? 1024 : 0;  // threads of a block; registers, shared memory, spills
  return SUCCESS;
}
EXPORT Status cuFuncSetAttribute(void* function, int attribute, int value) { return SUCCESS; }
EXPORT Status cuFuncSetCacheConfig(void* function, int config) { return SUCCESS; }

// ---- Launches.

static Status write_down(void* function, const unsigned* grid, const unsigned* block,
                         unsigned shared, void* stream, unsigned attributes, bool extended,
                         void** parameters) {
  if (context == NULL) return 201;  // invalid context
  if (fails_with) return fails_with;
  if (!recording) return SUCCESS;
  const Function* f = function;
  pthread_mutex_lock(&lock);
  if (launched == room) launches = realloc(launches, (room = 2 * room + 64) * sizeof(Launch));
  Launch* l = &launches[launched++];
  memset(l, 0, sizeof(*l));
  l->function = function;
  l->stream = stream;
  memcpy(l->grid, grid, sizeof(l->grid));
  memcpy(l->block, block, sizeof(l->block));
  l->shared = shared;
  l->attributes = attributes;
  l->extended = extended;
  for (unsigned i = 0; i < f->count; ++i) {
    const Parameter p = f->parameters[i];
    if (p.offset + p.size > MOST_BYTES) continue;
    memcpy(l->bytes + p.offset, parameters[i], p.size);
    if (p.offset + p.size > l->size) l->size = p.offset + p.size;
  }
  pthread_mutex_unlock(&lock);
  return SUCCESS;
}

EXPORT Status cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                             unsigned by, unsigned bz, unsigned shared, void* stream,
                             void** parameters, void** extra) {
  const unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
  return write_down(function, grid, block, shared, stream, 0, false, parameters);
}

typedef struct {
  unsigned grid[3], block[3], shared;
  void* stream;
  void* attributes;
  unsigned count;
} Config;

EXPORT Status cuLaunchKernelEx(const Config* c, void* function, void** parameters, void** extra) {
  return write_down(function, c->grid, c->block, c->shared, c->stream, c->count, true, parameters);
}

// ---- The device and its context.

EXPORT Status cuInit(unsigned flags) { return SUCCESS; }
EXPORT Status cuDriverGetVersion(int* version) {
  *version = 13000;
  return SUCCESS;
}
EXPORT Status cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return SUCCESS;
}
EXPORT Status cuDeviceGetCount(int* count) {
  *count = 1;
  return SUCCESS;
}
EXPORT Status cuDeviceGetAttribute(int* value, int attribute, int device) {
  switch (attribute) {
    case 10:  // warp
      *value = 32;
      return SUCCESS;
    case 16:
      *value = processors;
      return SUCCESS;
    case 75:
      *value = capability / 10;
      return SUCCESS;
    case 76:
      *value = capability % 10;
      return SUCCESS;
    case 97:  // shared memory that a block may opt in to
      *value = (capability < 90 ? 163 : 227) << 10;
      return SUCCESS;
    default:
      *value = 1024;
      return SUCCESS;
  }
}
EXPORT Status cuDevicePrimaryCtxRetain(void** retained, int device) {
  *retained = (void*)(uintptr_t)(0x1000 + device);
  return SUCCESS;
}
EXPORT Status cuCtxGetCurrent(void** current) {
  *current = context;
  return SUCCESS;
}
EXPORT Status cuCtxSetCurrent(void* current) {
  context = current;
  return SUCCESS;
}
EXPORT Status cuCtxGetDevice(int* device) {
  *device = 0;
  return SUCCESS;
}
EXPORT Status cuCtxGetLimit(size_t* value, int limit) {
  *value = 1 << 20;
  return SUCCESS;
}
EXPORT Status cuCtxSetLimit(int limit, size_t value) { return SUCCESS; }
EXPORT Status cuStreamIsCapturing(void* stream, int* status) {
  *status = 0;
  return SUCCESS;
}
EXPORT Status cuPointerGetAttribute(void* value, int attribute, uint64_t pointer) {
  memcpy(value, &pointer, sizeof(pointer));
  return SUCCESS;
}
EXPORT Status cuGetErrorString(Status status, const char** text) {
  *text = status == SUCCESS ? "no error" : status == 700 ? "an illegal memory access" : "an error";
  return SUCCESS;
}

// A stand-in for libnvidia-ml.so.1 that nvidia-ml-py loads as the real one. The file named by FAKE_NVML_STATE is read at every
// question, so a test changes the GPUs while jobs run. Its lines:
//     gpu UUID TOTAL_MIB FREE_MIB ERROR     ERROR is an NVML return code for every question about it, 15 for a lost GPU, 0 for none
//     process GPU_INDEX PID MIB             -1 MiB: the driver does not tell
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } process_t;
typedef struct { char uuid[80]; unsigned long long total, free; int error; } gpu_t;

static gpu_t gpus[16];
static struct { unsigned gpu, pid; long long mib; } processes[64];
static unsigned gpu_count, process_count;

static int load(void) {
    const char *name = getenv("FAKE_NVML_STATE");
    FILE *file = name ? fopen(name, "r") : NULL;
    char line[256];
    if (!file) return 9;  // NVML_ERROR_DRIVER_NOT_LOADED
    gpu_count = process_count = 0;
    while (fgets(line, sizeof line, file)) {
        gpu_t *gpu = &gpus[gpu_count];
        if (gpu_count < 16 && sscanf(line, "gpu %79s %llu %llu %d", gpu->uuid, &gpu->total, &gpu->free, &gpu->error) == 4) gpu_count++;
        else if (process_count < 64 && sscanf(line, "process %u %u %lld", &processes[process_count].gpu, &processes[process_count].pid,
                                              &processes[process_count].mib) == 3) process_count++;
    }
    fclose(file);
    return 0;
}

static gpu_t *get(void *device) { return &gpus[(size_t)device - 1]; }

int nvmlInitWithFlags(unsigned flags) { (void)flags; return load(); }
int nvmlInit_v2(void) { return load(); }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return code == 15 ? "GPU is lost" : code == 9 ? "Driver Not Loaded" : "error"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = gpu_count; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = (void *)(size_t)(index + 1); return 0; }
int nvmlDeviceGetUUID(void *device, char *buffer, unsigned size) { snprintf(buffer, size, "%s", get(device)->uuid); return 0; }
int nvmlDeviceGetName(void *device, char *buffer, unsigned size) { snprintf(buffer, size, "Fake GPU"); return get(device)->error; }

int nvmlDeviceGetMemoryInfo(void *device, memory_t *memory) {
    gpu_t *gpu = get(device);
    if (gpu->error) return gpu->error;
    memory->total = gpu->total << 20;
    memory->free = gpu->free << 20;
    memory->used = memory->total - memory->free;
    return 0;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, process_t *found) {
    unsigned index = (unsigned)((size_t)device - 1), number = 0, capacity = *count;
    if (get(device)->error) return get(device)->error;
    for (unsigned i = 0; i < process_count; i++) {
        if (processes[i].gpu != index) continue;
        if (found && number < capacity) {
            memset(&found[number], 0, sizeof found[number]);
            found[number].pid = processes[i].pid;
            found[number].used = processes[i].mib < 0 ? ~0ULL : (unsigned long long)processes[i].mib << 20;
        }
        number++;
    }
    *count = number;
    return number > capacity ? 7 : 0;  // NVML_ERROR_INSUFFICIENT_SIZE
}

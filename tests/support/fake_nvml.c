// A stand-in for libnvidia-ml.so.1 that nvidia-ml-py loads as the real one. The file named by FAKE_NVML_STATE is read at every
// question, so a test changes the GPUs while jobs run. Its lines:
//     gpu UUID TOTAL_MIB FREE_MIB ERROR     ERROR is an NVML return code for every question about it, 15 for a lost GPU, 0 for none
//     process GPU_INDEX PID MIB             -1 MiB: the driver does not tell
//     mig                                   the GPU above is in MIG mode
//     slice PLACE UUID TOTAL_MIB FREE_MIB   a MIG device of the GPU above at this place (0 to 6); the other places are empty
// Where NVIDIA_VISIBLE_DEVICES is set to something else than "all", as in a container, only GPUs and MIG devices named there are seen;
// the GPU of a MIG device comes with it.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } process_t;
typedef struct { char uuid[80]; unsigned long long total, free; int error, mig, parent, place; } gpu_t;

static gpu_t gpus[17], slices[33];  // one more than is used, for the line being read; handles: 1 + index, 101 + index
static struct { unsigned gpu, pid; long long mib; } processes[64];
static unsigned gpu_count, slice_count, process_count;

static int visible(const char *uuid) {
    const char *wanted = getenv("NVIDIA_VISIBLE_DEVICES"), *at;
    size_t length = strlen(uuid);
    if (!wanted || !strcmp(wanted, "all")) return 1;
    for (at = wanted; (at = strstr(at, uuid)); at += length)
        if ((at == wanted || at[-1] == ',') && (at[length] == 0 || at[length] == ',')) return 1;
    return 0;
}

static void hide(void) {  // GPUs that nothing of is visible; places of the others move up
    unsigned kept = 0, part = 0;
    for (unsigned i = 0; i < gpu_count; i++) {
        int show = visible(gpus[i].uuid);
        for (unsigned s = 0; s < slice_count; s++) show |= slices[s].parent == (int)i && visible(slices[s].uuid);
        for (unsigned s = 0; s < slice_count; s++) if (slices[s].parent == (int)i) slices[s].parent = show ? (int)kept : -1;
        for (unsigned p = 0; p < process_count; p++) if (processes[p].gpu == i) processes[p].gpu = show ? kept : 99;
        if (show) gpus[kept++] = gpus[i];
    }
    gpu_count = kept;
    for (unsigned s = 0; s < slice_count; s++)
        if (slices[s].parent >= 0 && (visible(slices[s].uuid) || visible(gpus[slices[s].parent].uuid))) slices[part++] = slices[s];
    slice_count = part;
}

static int load(void) {
    const char *name = getenv("FAKE_NVML_STATE");
    FILE *file = name ? fopen(name, "r") : NULL;
    char line[256];
    if (!file) return 9;  // NVML_ERROR_DRIVER_NOT_LOADED
    gpu_count = slice_count = process_count = 0;
    while (fgets(line, sizeof line, file)) {
        gpu_t *gpu = &gpus[gpu_count], *slice = &slices[slice_count];
        memset(gpu, 0, sizeof *gpu);
        if (!strncmp(line, "mig", 3) && gpu_count) gpu[-1].mig = 1;
        else if (slice_count < 32 && gpu_count && sscanf(line, "slice %d %79s %llu %llu", &slice->place, slice->uuid, &slice->total,
                                                         &slice->free) == 4) {
            slice->parent = gpu_count - 1;
            slice_count++;
        } else if (gpu_count < 16 && sscanf(line, "gpu %79s %llu %llu %d", gpu->uuid, &gpu->total, &gpu->free, &gpu->error) == 4) gpu_count++;
        else if (process_count < 64 && sscanf(line, "process %u %u %lld", &processes[process_count].gpu, &processes[process_count].pid,
                                              &processes[process_count].mib) == 3) process_count++;
    }
    fclose(file);
    hide();
    return 0;
}

static gpu_t *get(void *device) { return (size_t)device > 100 ? &slices[(size_t)device - 101] : &gpus[(size_t)device - 1]; }

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
    if ((size_t)device > 100) return 3;  // NVML_ERROR_NOT_SUPPORTED
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

int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending) {
    if (get(device)->error) return get(device)->error;
    *current = *pending = (unsigned)get(device)->mig;
    return 0;
}

int nvmlDeviceGetMaxMigDeviceCount(void *device, unsigned *count) {
    *count = get(device)->mig ? 7 : 0;
    return 0;
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *device, unsigned place, void **found) {
    for (unsigned s = 0; s < slice_count; s++) {
        if (slices[s].parent != (int)((size_t)device - 1) || slices[s].place != (int)place) continue;
        *found = (void *)(size_t)(101 + s);
        return 0;
    }
    return 6;  // NVML_ERROR_NOT_FOUND
}

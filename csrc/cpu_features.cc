// What the CPU says that it has, the registry of kernels, and the forcing of an ISA. See cpu_features.h.
#include "cpu_features.h"

#include <atomic>
#include <cstdio>
#include <cstring>

#if SB_X86
#include <cpuid.h>
#elif SB_ARM && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace sb {
namespace {

struct IsaInfo {
    const char* name;
    bool (*present)();
};

#if SB_X86
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2"); }
bool has_avx512vnni() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}
bool has_avxvnni() {
#ifdef SB_AVXVNNI_BY_EVEX
    return has_avx512vnni();
#else
    constexpr unsigned leaf = 7, subleaf = 1, bit = 1u << 4;  // in EAX
    unsigned eax = 0, ebx, ecx, edx;
    return has_avx2() && __get_cpuid_count(leaf, subleaf, &eax, &ebx, &ecx, &edx) && (eax & bit);
#endif
}
#else
bool has_avx2() { return false; }
bool has_avxvnni() { return false; }
bool has_avx512vnni() { return false; }
#endif

bool has_neon() { return SB_ARM; }  // part of every AArch64
bool has_neondot() {
#if SB_ARM && defined(__linux__)
    constexpr unsigned long asimddp = 1ul << 20;  // HWCAP_ASIMDDP, which old headers lack
    return getauxval(AT_HWCAP) & asimddp;
#elif SB_ARM && defined(__APPLE__)
    return true;  // every Apple silicon has it
#else
    return false;
#endif
}

constexpr IsaInfo kIsas[] = {
    {"portable", [] { return true; }},
    {"neon", has_neon},
    {"neondot", has_neondot},
    {"avx2", has_avx2},
    {"avxvnni", has_avxvnni},
    {"avx512vnni", has_avx512vnni},
};
static_assert(sizeof(kIsas) / sizeof(kIsas[0]) == kIsaCount, "a row for each Isa");

struct Entry {
    const char* op;
    Isa isa;
    Kernel kernel;
    char name[80];
};

// Plain storage: registration runs before main, in any order of the files, so nothing here may have a constructor.
constexpr int kMaxEntries = 512;
Entry entries[kMaxEntries];
int entry_count = 0;

constexpr int kAutomatic = kIsaCount - 1;
std::atomic<int> highest{kAutomatic};
std::atomic<int> generation{0};

}  // namespace

void Register::add(const char* op, Isa isa, const char* operands, const void* table) {
    if (entry_count == kMaxEntries) __builtin_trap();
    Entry& e = entries[entry_count++];
    const int length = std::snprintf(
        e.name, sizeof e.name, "%s%s%s_%s", op, *operands ? "_" : "", operands, kIsas[static_cast<int>(isa)].name);
    if (length >= static_cast<int>(sizeof e.name)) __builtin_trap();
    e.op = op, e.isa = isa, e.kernel = {e.name, table};
}

const Kernel& best_kernel(const char* op) {
    static const Kernel none{nullptr, nullptr};
    for (int level = highest.load(); level >= 0; --level) {
        if (!kIsas[level].present()) continue;
        for (int i = 0; i < entry_count; ++i)
            if (static_cast<int>(entries[i].isa) == level && !std::strcmp(entries[i].op, op)) return entries[i].kernel;
    }
    return none;
}

int isa_generation() { return generation.load(std::memory_order_relaxed); }

}  // namespace sb

// The name of ISA number i, and whether this machine has it; nullptr past the end.
SB_EXPORT const char* sb_isa_name(int i) { return i >= 0 && i < sb::kIsaCount ? sb::kIsas[i].name : nullptr; }
SB_EXPORT int sb_isa_present(int i) { return i >= 0 && i < sb::kIsaCount && sb::kIsas[i].present(); }

// Use no ISA above this one; "" restores the automatic choice. 0, or 1 for an unknown name, 2 for one that is not here.
SB_EXPORT int sb_force_isa(const char* name) {
    int level = sb::kAutomatic;
    if (*name) {
        for (level = 0; level < sb::kIsaCount && std::strcmp(sb::kIsas[level].name, name); ++level) {
        }
        if (level == sb::kIsaCount) return 1;
        if (!sb::kIsas[level].present()) return 2;
    }
    sb::highest = level;
    ++sb::generation;
    return 0;
}

// The kernel that `op` runs now; nullptr for an op without one.
SB_EXPORT const char* sb_best_kernel(const char* op) { return sb::best_kernel(op).name; }

// The table: op, name and ISA of the i-th registered kernel; nullptr past the end.
static const sb::Entry* entry(int i) { return i >= 0 && i < sb::entry_count ? &sb::entries[i] : nullptr; }
SB_EXPORT const char* sb_kernel_op(int i) { return entry(i) ? entry(i)->op : nullptr; }
SB_EXPORT const char* sb_kernel_name(int i) { return entry(i) ? entry(i)->kernel.name : nullptr; }
SB_EXPORT const char* sb_kernel_isa(int i) {
    return entry(i) ? sb::kIsas[static_cast<int>(entry(i)->isa)].name : nullptr;
}

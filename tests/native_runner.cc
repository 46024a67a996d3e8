// Runs calls of the library for a process of another architecture (native_runner.py has the other end): functions are
// named, arguments are integers, and memory comes and goes as blocks, each at an address that it has over there.
//
//     runner LIBRARY < requests > replies
//
// request   u32 length, name; u32 count, i64 arguments; u32 count, 8 bytes for each float argument; u32 count,
//           blocks {u64 address, u64 size, bytes}; u32 kind of the result: 0 an int, 1 a string
// reply     u32 result, or u32 length and the string (2^32 - 1 for none); then of each block u32 "it changed" and,
//           where it did, its bytes
// An argument, or an 8-byte word of a block passed as a struct, that lies in a block is an address: it is translated.
// Structs are the blocks without a tensor: their address has bit 63 set.
//
// Compiled with a sanitizer it is stricter: AddressSanitizer knows the guards around a block, and under ThreadSanitizer
// every call is made by two threads at once, each on blocks of its own, which must end equal. Compiled with ONE_THREAD it
// starts none: the library's workers run one after the other, for an emulator without threads (emulated_cpu.py).
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(from, size)
#define ASAN_UNPOISON_MEMORY_REGION(from, size)
#endif
#if defined(__SANITIZE_THREAD__)
#define CALLERS 2
#else
#define CALLERS 1
#endif

namespace {

// The library's threads: started for each region, so that a sanitizer sees where they begin and end.
thread_local int worker = 0;
int worker_number() { return worker; }
void in_parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
#ifdef ONE_THREAD  // whoever comes first finds all tasks, also those that were the others' share
    for (unsigned i = threads; i-- > 0;) {
        worker = static_cast<int>(i);
        body(data);
    }
#else
    std::vector<std::thread> others;
    for (unsigned i = 1; i < threads; ++i)
        others.emplace_back([=] {
            worker = static_cast<int>(i);
            body(data);
        });
    body(data);
    for (std::thread& t : others) t.join();
#endif
}

constexpr size_t kAlignment = 64;  // of addresses, which a block keeps; and the width of the guards around it
constexpr unsigned char kGuard = 0xA5;
constexpr uint32_t kNone = UINT32_MAX;
constexpr uint64_t kStruct = uint64_t{1} << 63;
constexpr size_t kMaxArguments = 40;
constexpr size_t kMaxFloats = 8;

[[noreturn]] void fail(const std::string& what) {
    std::fprintf(stderr, "runner: %s\n", what.c_str());
    std::exit(1);
}

void read(void* to, size_t n) {
    if (std::fread(to, 1, n, stdin) != n) std::exit(0);  // the other end is gone
}
void write(const void* from, size_t n) { std::fwrite(from, 1, n, stdout); }
uint32_t read_u32() {
    uint32_t v;
    read(&v, sizeof v);
    return v;
}
void write_u32(uint32_t v) { write(&v, sizeof v); }

struct Block {
    uint64_t address, size;
    std::vector<unsigned char> before;
    unsigned char* memory = nullptr;  // all of it, guards included
    unsigned char* data = nullptr;

    void take() {
        const size_t from = address % kAlignment, all = from + size + 2 * kAlignment;
        memory = static_cast<unsigned char*>(std::aligned_alloc(kAlignment, (all / kAlignment + 1) * kAlignment));
        data = memory + kAlignment + from;
        std::memset(data - kAlignment, kGuard, kAlignment);
        std::memset(data + size, kGuard, kAlignment);
        if (size) std::memcpy(data, before.data(), size);
        ASAN_POISON_MEMORY_REGION(data - kAlignment, kAlignment);
        ASAN_POISON_MEMORY_REGION(data + size, kAlignment);
    }
    void check(const std::string& name) const {
        ASAN_UNPOISON_MEMORY_REGION(data - kAlignment, kAlignment);
        ASAN_UNPOISON_MEMORY_REGION(data + size, kAlignment);
        for (size_t i = 0; i < kAlignment; ++i)
            if (data[-1 - static_cast<long>(i)] != kGuard || data[size + i] != kGuard)
                fail(name + " wrote outside of its memory");
    }
};

uint64_t translated(uint64_t v, const std::vector<Block>& blocks) {
    for (const Block& b : blocks)
        if (v >= b.address && v < b.address + b.size + (b.size == 0))
            return reinterpret_cast<uint64_t>(b.data) + (v - b.address);
    return v;
}

// Integer arguments go into registers, then onto the stack in slots of 8 bytes, whatever their type, and floats into
// registers of their own, of which there are enough: those that a function does not have do no harm.
template <size_t... I, size_t... F>
uint64_t call(void* function, const uint64_t* a, const double* f, std::index_sequence<I...>, std::index_sequence<F...>) {
    using Any = uint64_t (*)(decltype(uint64_t(I))..., decltype(double(F))...);
    return reinterpret_cast<Any>(function)(a[I]..., f[F]...);
}

// One caller's memory and the call itself.
struct Caller {
    std::vector<Block> blocks;
    uint64_t arguments[kMaxArguments] = {};
    double floats[kMaxFloats] = {};
    uint64_t result = 0;

    void run(void* function) {
        for (Block& b : blocks)
            for (uint64_t i = 0; (b.address & kStruct) && i + 8 <= b.size; i += 8) {
                uint64_t word;
                std::memcpy(&word, b.data + i, 8);
                word = translated(word, blocks);
                std::memcpy(b.data + i, &word, 8);
            }
        for (uint64_t& a : arguments) a = translated(a, blocks);
        result = call(function, arguments, floats, std::make_index_sequence<kMaxArguments>(),
                      std::make_index_sequence<kMaxFloats>());
    }
};

void serve(void* library) {
    std::string name(read_u32(), ' ');
    read(name.data(), name.size());
    Caller callers[CALLERS];
    Caller& first = callers[0];
    const uint32_t count = read_u32();
    if (count > kMaxArguments) fail(name + " has too many arguments");
    read(first.arguments, 8 * count);
    const uint32_t floats = read_u32();
    if (floats > kMaxFloats) fail(name + " has too many float arguments");
    read(first.floats, 8 * floats);
    first.blocks.resize(read_u32());
    for (Block& b : first.blocks) {
        read(&b.address, 8);
        read(&b.size, 8);
        b.before.resize(b.size);
        read(b.before.data(), b.size);
    }
    const uint32_t string = read_u32();
    for (int i = 1; i < CALLERS; ++i) callers[i] = first;
    for (Caller& c : callers)
        for (Block& b : c.blocks) b.take();

    void* function = dlsym(library, name.c_str());
    if (!function) fail("no function " + name);
    std::vector<std::thread> others;
    for (int i = 1; i < CALLERS; ++i) others.emplace_back([&callers, i, function] { callers[i].run(function); });
    first.run(function);
    for (std::thread& t : others) t.join();

    const char* text = string ? reinterpret_cast<const char*>(first.result) : nullptr;
    if (!string) {
        write_u32(static_cast<uint32_t>(first.result));
    } else if (text) {
        write_u32(static_cast<uint32_t>(std::strlen(text)));
        write(text, std::strlen(text));
    } else {
        write_u32(kNone);
    }
    for (size_t i = 0; i < first.blocks.size(); ++i) {
        const Block& b = first.blocks[i];
        for (Caller& c : callers) {
            c.blocks[i].check(name);
            if (!(b.address & kStruct) && std::memcmp(c.blocks[i].data, b.data, b.size))
                fail(name + ": two callers at once got different results");
        }
        const bool changed = !(b.address & kStruct) && std::memcmp(b.data, b.before.data(), b.size);
        write_u32(changed);
        if (changed) write(b.data, b.size);
        for (Caller& c : callers) std::free(c.blocks[i].memory);
    }
    std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
    void* library = argc == 2 ? dlopen(argv[1], RTLD_NOW) : nullptr;
    if (!library) fail(argc == 2 ? dlerror() : "usage: runner LIBRARY");
    const auto set_parallel = reinterpret_cast<void (*)(void*, void*)>(dlsym(library, "sb_set_parallel"));
    if (!set_parallel) fail("the library has no sb_set_parallel");
    set_parallel(reinterpret_cast<void*>(in_parallel), reinterpret_cast<void*>(worker_number));
    constexpr size_t kPipe = 1 << 16;  // bytes that a pipe holds: an emulator takes long for a system call
    std::setvbuf(stdin, nullptr, _IOFBF, kPipe);
    std::setvbuf(stdout, nullptr, _IOFBF, kPipe);
    for (;;) serve(library);
}

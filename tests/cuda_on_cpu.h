// Enough of CUDA C++ to compile a kernel with a C++ compiler and run it on a CPU, for tests.
//
// The threads of a block are coroutines: each runs until it reaches a barrier, then the next one, in the order of
// `schedule`. So a missing barrier shows in some order, and threads that wait at different barriers are an error, as are
// threads of a warp that do not all take part in a shuffle.
// Shared memory is `thread_local`, which all coroutines of a block see: also `extern __shared__ T name[]` compiles.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <setjmp.h>
#include <ucontext.h>

struct dim3 { unsigned int x, y, z; };
struct alignas(16) ulonglong2 { unsigned long long x, y; };
struct alignas(16) float4 { float x, y, z, w; };

#define __global__
#define __device__
#define __shared__ thread_local
#define __syncthreads() cuda_on_cpu::wait(cuda_on_cpu::at_block, __LINE__)

static thread_local dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace cuda_on_cpu {

static const unsigned char garbage = 0xA5;

enum State { ready, at_warp, at_block, done };

struct Thread {
    ucontext_t context;  // to start in; from then on it is left and entered by jumps, which are far cheaper
    jmp_buf place;
    std::vector<char> stack = std::vector<char>(64 * 1024);
    bool started;
    State state;
    int line;         // of the barrier
    int n_shuffles;
    unsigned long long shuffled[2];  // by turns: who writes the next one may be ahead of who reads
    dim3 index;
};

static thread_local std::vector<Thread> threads;
static thread_local jmp_buf scheduler;
static thread_local Thread *current;
static thread_local std::function<void()> body;
static thread_local std::string error;

static void wait(State state, int line)
{
    Thread *self = current;
    self->state = state;
    self->line = line;
    if (!_setjmp(self->place))
        _longjmp(scheduler, 1);
}

static void fail(const std::string &message)
{
    error = message;
    _longjmp(scheduler, 1);
}

static void run_thread()
{
    body();
    current->state = done;
    _longjmp(scheduler, 1);
}

// Let the current thread run until it waits, ends or fails.
static void resume()
{
    if (_setjmp(scheduler))
        return;
    if (current->started)
        _longjmp(current->place, 1);
    current->started = true;
    setcontext(&current->context);
}

// Whether the threads [first, last) all wait at the same barrier, which lets them go on.
static bool release(size_t first, size_t last, State barrier)
{
    for (size_t i = first; i < last; i++)
        if (threads[i].state != barrier || threads[i].line != threads[first].line)
            return false;
    for (size_t i = first; i < last; i++)
        threads[i].state = ready;
    return true;
}

static void run_block(unsigned int schedule)
{
    const size_t n = threads.size();
    std::mt19937 random(schedule);
    std::vector<size_t> order(n);
    for (size_t i = 0; i < n; i++)
        order[i] = schedule == 1 ? n - 1 - i : i;
    for (Thread &thread : threads) {
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.data();
        thread.context.uc_stack.ss_size = thread.stack.size();
        makecontext(&thread.context, run_thread, 0);
        thread.started = false;
        thread.n_shuffles = 0;
        thread.state = ready;
    }
    for (;;) {
        if (schedule > 1)
            std::shuffle(order.begin(), order.end(), random);
        for (size_t i : order)
            if (threads[i].state == ready) {
                current = &threads[i];
                threadIdx = current->index;
                resume();
                if (!error.empty())
                    return;
            }
        bool released = release(0, n, at_block);
        for (size_t warp = 0; warp < n; warp += 32)
            released |= release(warp, warp + 32 < n ? warp + 32 : n, at_warp);
        if (!released) {
            for (Thread &thread : threads)
                if (thread.state != done)
                    error = "threads of a block wait at different barriers, or some have ended before one (line " +
                            std::to_string(thread.line) + ")";
            return;
        }
    }
}

template <class... Parameters, size_t... I>
static void call(void (*kernel)(Parameters...), void **arguments, std::index_sequence<I...>)
{
    kernel(*static_cast<std::remove_reference_t<Parameters> *>(arguments[I])...);
}

// The first `asked_bytes` of `memory` are the dynamic shared memory, which is garbage when a block begins.
template <class... Parameters>
static const char *launch(void (*kernel)(Parameters...), const unsigned int *grid, const unsigned int *block,
                          unsigned int schedule, void **arguments, unsigned char *memory, size_t memory_bytes,
                          size_t asked_bytes)
{
    error.clear();
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    threads.resize(block[0] * block[1] * block[2]);
    for (unsigned int i = 0; i < threads.size(); i++)
        threads[i].index = {i % block[0], i / block[0] % block[1], i / block[0] / block[1]};
    body = [=] { call(kernel, arguments, std::index_sequence_for<Parameters...>{}); };
    for (blockIdx.z = 0; blockIdx.z < grid[2]; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < grid[1]; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < grid[0] && error.empty(); blockIdx.x++) {
                std::memset(memory, garbage, memory_bytes);
                run_block(schedule);
                for (size_t i = asked_bytes; i < memory_bytes && error.empty(); i++)
                    if (memory[i] != garbage)
                        error = "the kernel writes beyond the dynamic shared memory that was asked for";
            }
    return error.c_str();
}

}  // namespace cuda_on_cpu

static inline float __uint_as_float(unsigned int bits)
{
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

static inline unsigned int __float_as_uint(float value)
{
    unsigned int bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

static inline double __longlong_as_double(long long bits)
{
    double value;
    std::memcpy(&value, &bits, 8);
    return value;
}

static inline unsigned int atomicAdd(unsigned int *address, unsigned int value)
{
    unsigned int old = *address;
    *address += value;
    return old;
}

static inline unsigned long long atomicMax(unsigned long long *address, unsigned long long value)
{
    unsigned long long old = *address;
    *address = std::max(old, value);
    return old;
}

static inline unsigned long long atomicCAS(unsigned long long *address, unsigned long long expected, unsigned long long value)
{
    unsigned long long old = *address;
    if (old == expected)
        *address = value;
    return old;
}

namespace cuda_on_cpu {

// What the thread `lane` of the same warp gives; the value of this one where there is none.
template <class Value> static Value shuffle(unsigned int mask, Value value, size_t lane)
{
    static_assert(sizeof(Value) <= 8);
    const size_t i = current - threads.data();
    if (mask != 0xFFFFFFFFu || threads.size() % 32)
        fail("a shuffle by less than a whole warp");
    const int turn = current->n_shuffles++ % 2;
    std::memcpy(&current->shuffled[turn], &value, sizeof value);
    wait(at_warp, __LINE__);
    if (lane < 32)
        std::memcpy(&value, &threads[i / 32 * 32 + lane].shuffled[turn], sizeof value);
    return value;
}

}  // namespace cuda_on_cpu

template <class Value> static Value __shfl_down_sync(unsigned int mask, Value value, unsigned int delta)
{
    return cuda_on_cpu::shuffle(mask, value, (cuda_on_cpu::current - cuda_on_cpu::threads.data()) % 32 + delta);
}

template <class Value> static Value __shfl_xor_sync(unsigned int mask, Value value, unsigned int lanes)
{
    return cuda_on_cpu::shuffle(mask, value, ((cuda_on_cpu::current - cuda_on_cpu::threads.data()) % 32) ^ lanes);
}

template <class Value> static Value __shfl_sync(unsigned int mask, Value value, unsigned int lane)
{
    return cuda_on_cpu::shuffle(mask, value, lane);
}

// Selection for similarity.top_k on a GPU: float16 scores say which columns cannot be among the k best of a row,
// float32 products of the rest say which are.
//
// A score and its column are one 64-bit key. Keys are unique and ordered as the answer is: score descending, then column
// ascending. So the k largest keys are the answer whatever the order of tiles, blocks and atomics. Key 0 is no column.

typedef unsigned long long Key;

#define QUAD 4             // scores that a thread reads at once
#define BINS 256           // of the histogram of a first segment's scores
#define NO_SCORE (-2.0f)   // below every cosine
#define NAN_QUAD (~0ull)   // four NaN

static __device__ Key to_key(float score, unsigned int column)
{
    unsigned int bits = __float_as_uint(score);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;  // unsigned integers in the order of the floats
    return (Key)bits << 32 | (0xFFFFFFFFu - column);
}

static __device__ float score_of(Key key)  // NaN for key 0
{
    unsigned int bits = (unsigned int)(key >> 32);
    return __uint_as_float(bits & 0x80000000u ? bits & 0x7FFFFFFFu : ~bits);
}

// Exact for every finite float16; infinity and NaN give 65536 and more, which no cosine is.
static __device__ float half_to_float(unsigned int bits)
{
    float magnitude = __uint_as_float((bits & 0x7FFFu) << 13) * 5.192296858534828e33f;  // 2^(127 - 15), the biases
    return bits & 0x8000u ? -magnitude : magnitude;
}

// The same float32 for a pair in every tile and on every GPU, and for (x, y) and (y, x): lane l of a warp adds elements
// l, l + 32, ... in ascending order, then the lanes' sums are added pairwise. The answer counts in lane 0.
static __device__ float dot_by_warp(const float *x, const float *y, int d)
{
    unsigned int lane = threadIdx.x % 32;
    float sum = 0;
    for (int i = lane; i < d; i += 32)
        sum = fmaf(x[i], y[i], sum);
    for (int step = 16; step > 0; step /= 2)
        sum += __shfl_down_sync(0xFFFFFFFFu, sum, step);
    return sum;
}

// One block per row of a tile brings the row's best keys up to date with the columns of the tile.
//
// tile:      (gridDim.x, 4 * n_quads) float16 cosines, off by at most `slack`; NaN where a row or column does not count
// rows:      (gridDim.x, d) float32, of length 1
// columns:   (4 * n_quads, d) float32, of length 1; rows of it that do not count are not read
// own_column: the column, numbered as first_column is, that is row 0 itself; far below 0 where rows are no columns
// best:      (gridDim.x, k) keys, descending; this call sees to places first to first + n_best, those before are final
// blockDim.x is a multiple of 32. Dynamic shared memory: 8 * (2 * n_best + 4 * blockDim.x) + 4 * 4 * blockDim.x bytes.
extern "C" __global__ void update_best(
    const Key *tile, int n_quads, const float *rows, const float *columns, int d, unsigned int first_column,
    long long own_column, float slack, Key *best, int k, int first, int n_best)
{
    extern __shared__ Key dynamic[];
    Key *kept = dynamic;
    Key *merged = kept + n_best;
    Key *found = merged + n_best;                                            // at most one for each score of a segment
    unsigned int *candidates = (unsigned int *)(found + QUAD * blockDim.x);  // the same; columns of the tile
    __shared__ unsigned int n_candidates[2], n_found, histogram[BINS];
    __shared__ float seed;

    const Key *quads = tile + (size_t)blockIdx.x * n_quads;
    const float *row = rows + (size_t)blockIdx.x * d;
    Key *own = best + (size_t)blockIdx.x * k + first;
    const Key ceiling = first > 0 ? own[-1] : ~0ull;  // keys from here on are in their places
    const float highest = first > 0 ? score_of(ceiling) : 1;
    const long long self = own_column + blockIdx.x - first_column;

    for (int i = threadIdx.x; i < n_best; i += blockDim.x)
        kept[i] = own[i];
    if (threadIdx.x == 0)
        n_candidates[0] = n_candidates[1] = n_found = 0;
    __syncthreads();

    int turn = 0;  // two counters, so that one barrier per segment is enough where nothing is found
    for (int segment = 0; segment < n_quads; segment += blockDim.x, turn ^= 1) {
        int quad = segment + threadIdx.x;
        Key packed = quad < n_quads ? quads[quad] : NAN_QUAD;
        float score[QUAD];
        for (int i = 0; i < QUAD; i++) {
            score[i] = half_to_float((unsigned int)(packed >> 16 * i) & 0xFFFFu);
            if (QUAD * (long long)quad + i == self)
                score[i] = 2 * NO_SCORE;
        }

        float least = NO_SCORE;  // a lower one cannot be among the best
        if (kept[n_best - 1] != 0) {
            least = score_of(kept[n_best - 1]) - slack;
        } else {
            // Not n_best columns yet. If n_best of this segment score at least s, the best do, and s from a histogram
            // spares verifying the others. Counted are only those that are certainly below the ceiling.
            for (int i = threadIdx.x; i < BINS; i += blockDim.x)
                histogram[i] = 0;
            __syncthreads();
            for (int i = 0; i < QUAD; i++)
                if (score[i] > NO_SCORE && score[i] < 2 && (first == 0 || score[i] < highest - slack))
                    atomicAdd(&histogram[(int)fminf(fmaxf((score[i] + 1) * (BINS / 2), 0), BINS - 1)], 1u);
            __syncthreads();
            if (threadIdx.x == 0) {
                int bin = BINS, total = 0;
                while (bin > 0 && total < n_best)
                    total += histogram[--bin];
                seed = total < n_best || bin == 0 ? NO_SCORE : bin / (BINS / 2.0f) - 1 - 2 * slack;
            }
            __syncthreads();
            least = seed;
        }
        for (int i = 0; i < QUAD; i++)
            if (score[i] >= least && score[i] <= highest + slack)
                candidates[atomicAdd(&n_candidates[turn], 1u)] = QUAD * quad + i;
        __syncthreads();
        int n = n_candidates[turn];
        if (n == 0)
            continue;

        for (int i = threadIdx.x / 32; i < n; i += blockDim.x / 32) {
            float dot = dot_by_warp(row, columns + (size_t)candidates[i] * d, d);
            if (threadIdx.x % 32 == 0) {
                Key key = to_key(fminf(fmaxf(dot, -1), 1) + 0.0f, first_column + candidates[i]);  // + 0: never -0
                if (key > kept[n_best - 1] && key < ceiling)
                    found[atomicAdd(&n_found, 1u)] = key;
            }
        }
        __syncthreads();
        if (threadIdx.x == 0)
            n_candidates[turn] = 0;

        // A key's place is the number of larger ones: the kept keys are in order, the few found ones are counted.
        n = n_found;
        for (int i = threadIdx.x; i < n_best + n; i += blockDim.x) {
            Key key = i < n_best ? kept[i] : found[i - n_best];
            int place = i < n_best ? i : 0;
            for (int j = 0; j < n; j++)
                place += found[j] > key;
            for (int j = 0; i >= n_best && j < n_best; j++)
                place += kept[j] > key;
            if (place < n_best)
                merged[place] = key;
        }
        __syncthreads();
        Key *swap = kept;
        kept = merged;
        merged = swap;
        if (threadIdx.x == 0)
            n_found = 0;
    }
    for (int i = threadIdx.x; i < n_best; i += blockDim.x)
        own[i] = kept[i];
}

// Column and score of each of n keys; -1 and NaN for key 0.
extern "C" __global__ void unpack_keys(const Key *keys, long long n, long long *columns, float *scores)
{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        columns[i] = keys[i] != 0 ? 0xFFFFFFFFu - (unsigned int)keys[i] : -1ll;
        scores[i] = score_of(keys[i]);
    }
}

// Exact similarity on a GPU: half-precision scores say which pairs may count, float32 products of those say which do.
//
// A score and its column are one 64-bit key. Keys are unique and ordered as the answer is: score descending, then column
// ascending. So the k largest keys are the answer whatever the order of tiles, warps and atomics. Key 0 is no column.
// The floor of a row is a key that k of its neighbours are known, or guessed, to reach: lower ones need no look.

typedef unsigned long long Key;

#define WIDTH 8      // half-precision scores that a thread reads at once: 16 bytes
#define HEIGHT 16    // rows of a tile that a warp looks through, while it holds the bars of its columns in registers
#define WHOLE_WARP 0xFFFFFFFFu

static __device__ Key to_key(float score, unsigned int column)
{
    unsigned int bits = __float_as_uint(score);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;  // unsigned integers in the order of the floats
    return (Key)bits << 32 | (0xFFFFFFFFu - column);
}

static __device__ float score_of(Key key)  // NaN for key 0 and for the highest, which nothing is above or below
{
    unsigned int bits = (unsigned int)(key >> 32);
    return __uint_as_float(bits & 0x80000000u ? bits & 0x7FFFFFFFu : ~bits);
}

static __device__ float half_to_float(unsigned int bits)  // exact for every finite number
{
    float magnitude = __uint_as_float((bits & 0x7FFFu) << 13) * 5.192296858534828e33f;  // 2^(127 - 15), the biases
    return bits & 0x8000u ? -magnitude : magnitude;
}

static __device__ unsigned short float_to_half(float value)  // |value| < 65520, rounded to nearest, ties to even
{
    const unsigned int bits = __float_as_uint(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
    if (magnitude < 0x38800000u)  // below 2^-14, multiples of 2^-24
        return (unsigned short)(sign | (unsigned int)rintf(__uint_as_float(magnitude) * 16777216.0f));
    return (unsigned short)(sign | ((magnitude + 0xFFFu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13));
}

// SplitMix64's constants (Steele, Lea and Flood 2014); the shift keeps the sum from being linear in the values.
static __device__ Key mix(Key value, Key place)
{
    const Key mixed = (value + (place + 1) * 0x9E3779B97F4A7C15ull) * 0xBF58476D1CE4E5B9ull;
    return (mixed ^ mixed >> 31) * 0x94D049BB133111EBull;
}

// One warp per row: the row scaled to length 1, in float32 and in half precision, both zero beyond d; whether it is free of
// NaN and infinity, else it becomes zero; and a hash that rows of one direction share, rounding aside.
//
// X:     (n, d)
// unit:  (n, padded_d) float32 out; half: the same in half precision
// valid: (n,) out; digests: (n,) out
template <class Element>
static __device__ void scale_row(const Element *X, long long n, int d, int padded_d, float *unit, unsigned short *half,
                                 unsigned char *valid, Key *digests)
{
    const int lane = threadIdx.x % 32;
    const long long row = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (row >= n)
        return;
    X += row * d;
    unit += row * padded_d;
    half += row * padded_d;

    // Squares neither overflow nor vanish once the largest element is near 1.
    const double infinity = __longlong_as_double(0x7FF0000000000000ll);
    double largest = 0, squares = 0;
    for (int i = lane; i < d; i += 32) {
        const double size = fabs((double)X[i]);
        largest = size < infinity ? fmax(largest, size) : infinity;  // NaN is not below
    }
    for (int step = 16; step > 0; step /= 2)
        largest = fmax(largest, __shfl_xor_sync(WHOLE_WARP, largest, step));
    const bool is_valid = largest < infinity;
    int exponent = 0;
    frexp(is_valid ? largest : 0.0, &exponent);
    for (int i = lane; i < d; i += 32) {
        const double value = is_valid ? ldexp((double)X[i], -exponent) : 0.0;
        squares += value * value;
    }
    for (int step = 16; step > 0; step /= 2)
        squares += __shfl_xor_sync(WHOLE_WARP, squares, step);
    const double scale = squares > 0 ? 1 / sqrt(squares) : 0.0;

    Key digest = 0;
    for (int i = lane; i < padded_d; i += 32) {
        const float value = i < d && is_valid ? (float)(ldexp((double)X[i], -exponent) * scale) : 0.0f;
        unit[i] = value;
        half[i] = float_to_half(value);
        digest += mix((Key)(long long)rintf(value * 1024.0f), (Key)i);
    }
    for (int step = 16; step > 0; step /= 2)
        digest += __shfl_xor_sync(WHOLE_WARP, digest, step);
    if (lane == 0) {
        valid[row] = is_valid;
        digests[row] = digest;
    }
}

extern "C" __global__ void scale_float_rows(const float *X, long long n, int d, int padded_d, float *unit,
                                            unsigned short *half, unsigned char *valid, Key *digests)
{
    scale_row(X, n, d, padded_d, unit, half, valid, digests);
}

extern "C" __global__ void scale_double_rows(const double *X, long long n, int d, int padded_d, float *unit,
                                             unsigned short *half, unsigned char *valid, Key *digests)
{
    scale_row(X, n, d, padded_d, unit, half, valid, digests);
}

// The pairs of a tile whose half-precision score reaches the floor of its row or of its column, up to `slack`.
//
// tile:        (n_rows, stride) half-precision cosines, of which n_columns count, off by at most `slack`
// diagonal:    a pair counts if its column is above its row + diagonal
// pairs:       out, row * stride + column of each; n_pairs: out, added to
extern "C" __global__ void collect_pairs(const ulonglong2 *tile, unsigned int n_rows, unsigned int n_columns,
                                         unsigned int stride, long long diagonal, const Key *row_floors,
                                         const Key *column_floors, float slack, unsigned int *pairs, unsigned int *n_pairs)
{
    const unsigned int warp = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    const unsigned int n_strips = (stride + 32 * WIDTH - 1) / (32 * WIDTH);
    const unsigned int column = (warp % n_strips * 32 + threadIdx.x % 32) * WIDTH;
    const unsigned int first = warp / n_strips * HEIGHT;
    if (column >= n_columns)
        return;
    float column_bars[WIDTH];
    for (unsigned int i = 0; i < WIDTH; i++)
        column_bars[i] = column + i < n_columns ? score_of(column_floors[column + i]) - slack : score_of(0);
    for (unsigned int row = first; row < n_rows && row < first + HEIGHT; row++) {
        const float row_bar = score_of(row_floors[row]) - slack;
        const size_t start = (size_t)row * stride + column;
        const ulonglong2 packed = tile[start / WIDTH];
        for (unsigned int i = 0; i < WIDTH; i++) {
            const Key four = i < 4 ? packed.x : packed.y;
            const float score = half_to_float((unsigned int)(four >> 16 * (i % 4)) & 0xFFFFu);
            const bool counts = column + i < n_columns && column + i > row + diagonal;
            if (counts && (score >= row_bar || score >= column_bars[i]))
                pairs[atomicAdd(n_pairs, 1u)] = (unsigned int)(start + i);
        }
    }
}

// The score of two rows, in every lane. The same float32 in every tile and on every GPU, and for (x, y) and (y, x): each
// lane adds every 32nd four elements in ascending order, then the lanes' sums are added pairwise.
static __device__ float score_by_warp(const float4 *x, const float4 *y, int d)
{
    float sum = 0;
    for (int i = threadIdx.x % 32; i < d / 4; i += 32) {
        const float4 a = x[i], b = y[i];
        sum = fmaf(a.x, b.x, sum);
        sum = fmaf(a.y, b.y, sum);
        sum = fmaf(a.z, b.z, sum);
        sum = fmaf(a.w, b.w, sum);
    }
    for (int step = 16; step > 0; step /= 2)
        sum += __shfl_xor_sync(WHOLE_WARP, sum, step);
    return fminf(fmaxf(sum, -1), 1) + 0.0f;  // + 0: never -0, which is another key
}

// A key among the k best of a row, in no order, by one warp, while others do the same: it replaces the least of them, if
// that is still there. Places only ever rise, so the least of those read is a floor that k reach.
static __device__ void push(Key *best, Key *floor, int k, Key key)
{
    const int lane = threadIdx.x % 32;
    bool is_in = false;
    while (__shfl_sync(WHOLE_WARP, key > *(volatile Key *)floor || is_in, 0)) {
        Key least = ~0ull;
        int place = 0;
        for (int i = lane; i < k; i += 32) {
            const Key other = ((volatile Key *)best)[i];
            if (other < least) {
                least = other;
                place = i;
            }
        }
        for (int step = 16; step > 0; step /= 2) {
            const Key other = __shfl_xor_sync(WHOLE_WARP, least, step);
            const int place_of_other = __shfl_xor_sync(WHOLE_WARP, place, step);
            if (other < least || (other == least && place_of_other < place)) {
                least = other;
                place = place_of_other;
            }
        }
        if (lane == 0 && least != 0)
            atomicMax(floor, least);
        if (is_in || key <= least)
            return;
        Key found = 0;
        if (lane == 0)
            found = atomicCAS(best + place, least, key);
        is_in = __shfl_sync(WHOLE_WARP, found == least, 0);
    }
}

// One warp per pair that `collect_pairs` found: its score, and a place among the best of its row and of its column.
//
// rows, columns:         (., padded_d) float32, of length 1; row_ids, column_ids: their numbers in the answer
// of_itself:             whether a row and a column of the same number are one row, which is not its own neighbour
// row_best, column_best: (., k) keys; row_floors, column_floors: (.,) keys. The highest floor admits nothing.
extern "C" __global__ void update_best(const unsigned int *pairs, const unsigned int *n_pairs, unsigned int stride,
                                       const float4 *rows, const float4 *columns, int padded_d, const unsigned int *row_ids,
                                       const unsigned int *column_ids, int of_itself, int k, Key *row_best, Key *row_floors,
                                       Key *column_best, Key *column_floors)
{
    const unsigned int n = *n_pairs, n_warps = gridDim.x * (blockDim.x / 32);
    for (unsigned int i = (blockIdx.x * blockDim.x + threadIdx.x) / 32; i < n; i += n_warps) {
        const unsigned int row = pairs[i] / stride, column = pairs[i] % stride;
        if (of_itself && row_ids[row] == column_ids[column])
            continue;
        const float score = score_by_warp(rows + (size_t)row * (padded_d / 4), columns + (size_t)column * (padded_d / 4), padded_d);
        push(row_best + (size_t)row * k, row_floors + row, k, to_key(score, column_ids[column]));
        push(column_best + (size_t)column * k, column_floors + column, k, to_key(score, row_ids[row]));
    }
}

// The scores of the pairs that `collect_pairs` found, by one warp each.
extern "C" __global__ void score_pairs(const unsigned int *pairs, const unsigned int *n_pairs, unsigned int stride,
                                       const float4 *rows, const float4 *columns, int padded_d, float *scores)
{
    const unsigned int n = *n_pairs, n_warps = gridDim.x * (blockDim.x / 32);
    for (unsigned int i = (blockIdx.x * blockDim.x + threadIdx.x) / 32; i < n; i += n_warps) {
        const size_t row = pairs[i] / stride, column = pairs[i] % stride;
        const float score = score_by_warp(rows + row * (padded_d / 4), columns + column * (padded_d / 4), padded_d);
        if (threadIdx.x % 32 == 0)
            scores[i] = score;
    }
}

// One warp per row: its k keys in descending order, as columns and scores, at the row's place in the answer; -1 and NaN for
// key 0. A key's place is the number of larger ones.
extern "C" __global__ void write_answer(const Key *best, long long n, int k, const unsigned int *ids, long long *indices,
                                        float *scores)
{
    const long long row = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (row >= n)
        return;
    best += row * k;
    for (int i = threadIdx.x % 32; i < k; i += 32) {
        const Key key = best[i];
        long long place = (long long)ids[row] * k;
        for (int j = 0; j < k; j++)
            place += best[j] > key || (best[j] == key && j < i);
        indices[place] = key != 0 ? 0xFFFFFFFFu - (unsigned int)key : -1ll;
        scores[place] = score_of(key);
    }
}

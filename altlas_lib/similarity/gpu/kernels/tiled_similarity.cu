// Cosine similarity of all rows with all rows by the textbook product of tiles in shared memory, for comparison with
// cuBLAS: CUDA C++ Programming Guide, "Shared Memory".

#define TILE 16

// Block (x, y) of TILE x TILE threads computes rows y * TILE and columns x * TILE onwards.
//
// X:          (n, d) float32
// similarity: (n, n) float32 out
// lengths:    (n,) float32 out, the rows' norms
extern "C" __global__ void tiled_similarity(const float *X, long long n, long long d, float *similarity, float *lengths)
{
    __shared__ float left[TILE][TILE + 1], right[TILE][TILE + 1];  // + 1: threads of a warp read from different banks
    __shared__ float left_length[TILE], right_length[TILE];
    const unsigned int x = threadIdx.x, y = threadIdx.y;
    const long long first_row = (long long)blockIdx.y * TILE, first_column = (long long)blockIdx.x * TILE;

    float dot = 0, left_squares = 0, right_squares = 0;
    for (long long start = 0; start < d; start += TILE) {
        const bool inside = start + x < d;
        left[y][x] = inside && first_row + y < n ? X[(first_row + y) * d + start + x] : 0;
        right[y][x] = inside && first_column + y < n ? X[(first_column + y) * d + start + x] : 0;
        left_squares = fmaf(left[y][x], left[y][x], left_squares);
        right_squares = fmaf(right[y][x], right[y][x], right_squares);
        __syncthreads();
        for (int i = 0; i < TILE; i++)
            dot = fmaf(left[y][i], right[x][i], dot);
        __syncthreads();
    }

    left[y][x] = left_squares;
    right[y][x] = right_squares;
    __syncthreads();
    if (x == 0) {
        float left_sum = 0, right_sum = 0;
        for (int i = 0; i < TILE; i++) {
            left_sum += left[y][i];
            right_sum += right[y][i];
        }
        left_length[y] = sqrtf(left_sum);
        right_length[y] = sqrtf(right_sum);
        if (blockIdx.x == 0 && first_row + y < n)
            lengths[first_row + y] = left_length[y];
    }
    __syncthreads();
    if (first_row + y < n && first_column + x < n) {
        const float a = left_length[y], b = right_length[x];
        similarity[(first_row + y) * n + first_column + x] = a > 0 && b > 0 ? dot / a / b : 0;
    }
}

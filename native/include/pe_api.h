/* The public API of the pyengine core.
 *
 * This file holds declarations, integer constants and comments only: cffi reads
 * it verbatim, so C and Python can never disagree. C programs include
 * "pyengine.h", which adds the standard headers and symbol visibility.
 *
 * Objects and who keeps whom alive:
 *
 *     pe_file     a GGUF file (all its parts), mapped read-only
 *       ^
 *     pe_engine   a model bound to a file, its threads, its KV pages
 *       ^
 *     pe_session  one timeline of tokens with its page table
 *
 * Each holds a reference on the one above, so they may be released in any order.
 *
 * Every function that can fail returns a pe_status and takes a pe_error last,
 * which may be NULL and is written only on failure. After a failure handles are
 * NULL, the contents of output arrays are undefined, and every object is as it was
 * before the call. The core
 * never prints, exits, aborts, or installs signal handlers.
 */

#define PE_API_VERSION 1

/* Positions per KV page. */
#define PE_PAGE_TOKENS 32

typedef enum pe_status {
    PE_OK = 0,
    PE_ERR_ARG = -1,          // an argument is outside its range
    PE_ERR_IO = -2,           // the operating system refused (open, map)
    PE_ERR_FORMAT = -3,       // the file breaks the GGUF format or contradicts itself
    PE_ERR_UNSUPPORTED = -4,  // the file is sound but needs a feature this build lacks
    PE_ERR_NOMEM = -5,        // memory, or the KV budget, is spent
    PE_ERR_CONTEXT = -6,      // more tokens than the context holds
    PE_ERR_NUMERIC = -7,      // NaN or infinity where a number was expected
    PE_ERR_CANCELLED = -8     // the caller's cancel flag was raised
} pe_status;

/* What went wrong: the thing, what was expected, what was found. No newline. */
typedef struct pe_error {
    int32_t code;
    char message[508];
} pe_error;

/* The version this library was built as; compare with PE_API_VERSION. */
uint32_t pe_api_version(void);

/* ---- data types ------------------------------------------------------- */

/* Numbers are GGUF's own tensor type numbers. Types that are not named here are
 * known by size (pe_dtype_describe) but cannot be computed with. */
typedef enum pe_dtype {
    PE_DTYPE_F32 = 0,
    PE_DTYPE_F16 = 1,
    PE_DTYPE_Q4_0 = 2,
    PE_DTYPE_Q4_1 = 3,
    PE_DTYPE_Q5_0 = 6,
    PE_DTYPE_Q5_1 = 7,
    PE_DTYPE_Q8_0 = 8,
    PE_DTYPE_Q2_K = 10,
    PE_DTYPE_Q3_K = 11,
    PE_DTYPE_Q4_K = 12,
    PE_DTYPE_Q5_K = 13,
    PE_DTYPE_Q6_K = 14,
    PE_DTYPE_IQ4_NL = 20,
    PE_DTYPE_IQ4_XS = 23,
    PE_DTYPE_BF16 = 30,
    PE_DTYPE_MXFP4 = 39
} pe_dtype;

typedef struct pe_dtype_info {
    const char *name;        // as GGUF tools write it, "Q4_0"; static storage
    uint32_t block_weights;  // weights per block, 1 for float types
    uint32_t block_bytes;
    bool can_compute;   // the engine multiplies with it; pe_dequantize reads it
    bool can_quantize;  // pe_quantize writes it
} pe_dtype_info;

/* Describes a GGUF tensor type number.
 * errors   PE_ERR_UNSUPPORTED for a number that no known GGUF version defines */
pe_status pe_dtype_describe(pe_dtype_info *out_info, uint32_t dtype, pe_error *err);

/* Encodes n_weights floats as dtype with GGUF's plain rounding, byte for byte what
 * llama.cpp writes without an importance matrix. Two kinds of blocks of 32 it
 * leaves to chance or does otherwise: zeros that start with -0 are as gguf-py has
 * them, and what is too small for its step to have an inverse decodes to zeros.
 * shape    n_weights a multiple of the type's block; out has room for its blocks
 * threads  re-entrant
 * errors   PE_ERR_ARG for a partial block, PE_ERR_UNSUPPORTED for a type that
 *          cannot be written, PE_ERR_NUMERIC (with the index) for NaN or infinity
 *          in a block-quantized type and for a block whose scale leaves fp16 */
pe_status pe_quantize(void *out, uint32_t dtype, const float *weights, uint64_t n_weights,
                      pe_error *err);

/* Encodes rows as dtype, each block with the scales and minimums of least error
 *
 *     sum over its weights of importance[column] * (weight - value)^2
 *
 * that a search finds; never a larger error than pe_quantize's. Any weights of error, as
 * llama.cpp's importance matrix holds them: means of a column's squared inputs.
 * shape    weights[n_rows][n_cols], importance[n_cols] or NULL for all 1; n_cols a
 *          multiple of the type's block; out has room for the blocks
 * threads  re-entrant
 * numeric  the same bytes on every machine. Only ratios of importance count; columns of
 *          2^-30 of their block's largest, and less, count as that
 * errors   PE_ERR_ARG for a partial block or an importance below 0, PE_ERR_UNSUPPORTED
 *          for a type without blocks, PE_ERR_NUMERIC (with the index) for NaN or
 *          infinity and for a block whose scale leaves fp16 */
pe_status pe_quantize_weighted(void *out, uint32_t dtype, const float *weights,
                               const float *importance, uint64_t n_rows, uint64_t n_cols,
                               pe_error *err);

/* Finds the blocks whose weights are, exactly, values of a grid of dtype (Q4_0, Q4_1, Q5_0,
 * Q5_1, Q8_0), as those of checkpoints trained for it are: decoding out and rounding to
 * source, the type that the weights were stored as (F32, F16 or BF16), gives them back.
 * shape    out has room for the blocks, out_found for one byte each: 1 and the block, or
 *          0 and a block of zero bytes
 * threads  re-entrant
 * errors   PE_ERR_ARG for a partial block or another source, PE_ERR_UNSUPPORTED for other
 *          types. NaN and infinity lie on no grid */
pe_status pe_find_lattice(void *out, uint8_t *out_found, uint32_t dtype, uint32_t source,
                          const float *weights, uint64_t n_weights, pe_error *err);

/* Decodes n_weights weights to float; equals gguf-py's dequantize bit for bit.
 * shape, threads and errors as pe_quantize, without PE_ERR_NUMERIC */
pe_status pe_dequantize(float *out, uint32_t dtype, const void *blocks, uint64_t n_weights,
                        pe_error *err);

/* ---- rounding with second moments ------------------------------------- */

/* Threads for choosing how weights are stored. Inputs of a matrix are rows x; their second moments
 * H, the sum of x^T x, say by how much outputs change: e H e^T for a row's errors e. All results
 * are the same for any number of threads and any instruction set.
 *
 * threads  one call at a time on one quantizer
 * alias    outputs overlap no inputs */
typedef struct pe_quantizer pe_quantizer;

/* n_threads 0: usable cores; isa as in pe_engine_params.
 * owner    *out_quantizer is the caller's, released with pe_quantizer_free
 * errors   PE_ERR_ARG, PE_ERR_NOMEM */
pe_status pe_quantizer_new(pe_quantizer **out_quantizer, uint32_t n_threads, uint32_t isa,
                           pe_error *err);

/* NULL is allowed. */
void pe_quantizer_free(pe_quantizer *quantizer);

/* sums[i][j] += the sum over rows of y[row][i] * x[row][j].
 * shape    sums [n_y][n_x], y [n_rows][n_y], x [n_rows][n_x]; y may be x
 * numeric  512 rows at a time; how rows are cut into calls changes the last bits
 * errors   PE_ERR_NOMEM */
pe_status pe_quantizer_gram(pe_quantizer *quantizer, float *sums, const float *y, const float *x,
                            uint64_t n_rows, uint64_t n_y, uint64_t n_x, pe_error *err);

/* Replaces H by its factor R, H + damping * mean(diagonal) I = R R^T: R in the upper triangle with
 * the diagonal, R[j][k] / R[k][k] at [k][j] below it. Where that is not positive definite more
 * is put on the diagonal; *out_damping is what it came to.
 * shape    h [n][n], symmetric
 * errors   PE_ERR_NUMERIC where no damping helps (NaN), PE_ERR_NOMEM */
pe_status pe_quantizer_factor(pe_quantizer *quantizer, float *h, uint64_t n, float damping,
                              float *out_damping, pe_error *err);

/* Replaces rows y by y H^-1, H given by its factor.
 * shape    y [n_rows][n], factor [n][n] */
void pe_quantizer_solve(pe_quantizer *quantizer, float *y, const float *factor, uint64_t n_rows,
                        uint64_t n);

/* out[i][j] = dot of row i of a and row j of b.
 * shape    out [n_a][n_b], a [n_a][n], b [n_b][n] */
void pe_quantizer_product(pe_quantizer *quantizer, float *out, const float *a, const float *b,
                          uint64_t n_a, uint64_t n_b, uint64_t n);

/* A matrix to be rounded. */
typedef struct pe_rounding {
    uint32_t struct_bytes;
    uint32_t dtype;
    uint32_t n_sweeps;  // times that every weight is moved again, after the first rounding
    uint64_t n_rows;
    uint64_t n_cols;       // a multiple of the type's block
    const float *weights;  // [n_rows][n_cols]
    const float *factor;   // [n_cols][n_cols], of pe_quantizer_factor
    const float *moments;  // [n_cols][n_cols], H itself
    void *out;             // room for the blocks
    double error;          // out: the sum over rows of e H e^T
    double norm;           // out: of w H w^T
} pe_rounding;

/* Rounds with error feedback (GPTQ, arXiv:2210.17323, in the form of LDLQ, arXiv:2307.13304); the
 * scales of each block are searched for when its turn comes, on the weights as feedback has moved
 * them.
 * errors   PE_ERR_ARG, PE_ERR_UNSUPPORTED, PE_ERR_NUMERIC (a weight that is no number, with its
 *          index; a scale that leaves fp16, with its row), PE_ERR_NOMEM */
pe_status pe_quantizer_round(pe_quantizer *quantizer, pe_rounding *rounding, pe_error *err);

/* ---- files ------------------------------------------------------------ */

typedef struct pe_file pe_file;

typedef enum pe_meta_type {
    PE_META_U8 = 0,
    PE_META_I8 = 1,
    PE_META_U16 = 2,
    PE_META_I16 = 3,
    PE_META_U32 = 4,
    PE_META_I32 = 5,
    PE_META_F32 = 6,
    PE_META_BOOL = 7,
    PE_META_STRING = 8,
    PE_META_ARRAY = 9,
    PE_META_U64 = 10,
    PE_META_I64 = 11,
    PE_META_F64 = 12
} pe_meta_type;

/* One metadata entry; pointers reach into the mapping and live as long as the file.
 *
 * layout   scalar   data is the value, unaligned, little-endian
 *          STRING   data is its bytes, not NUL-terminated; n_bytes its length
 *          ARRAY    n_items elements of item_type back to back as in the file: a
 *                   string is a 64-bit length and its bytes, a nested array is
 *                   its 32-bit type, 64-bit count and elements */
typedef struct pe_meta {
    const char *key;  // not NUL-terminated
    uint64_t key_bytes;
    uint32_t type;
    uint32_t item_type;  // of an ARRAY, else equal to type
    uint64_t n_items;    // of an ARRAY, else 1
    const void *data;
    uint64_t n_bytes;
} pe_meta;

typedef struct pe_tensor_info {
    const char *name;  // not NUL-terminated
    uint64_t name_bytes;
    uint32_t dtype;
    uint32_t n_dims;
    uint64_t dims[4];  // in elements, the fastest first, as GGUF lists them; unused are 1
    const void *data;  // in the mapping
    uint64_t n_bytes;
    uint64_t offset;  // of data, from the start of its part, in bytes
    uint32_t part;    // 0-based index of the part that holds it
} pe_tensor_info;

typedef struct pe_file_info {
    uint32_t version;  // GGUF version, 2 or 3
    uint32_t n_parts;
    uint64_t n_meta;  // entries of the first part
    uint64_t n_tensors;
    uint64_t n_bytes;       // of all parts together
    uint64_t tensor_bytes;  // of all tensors together
} pe_file_info;

/* Maps a GGUF file and checks every count, offset and size in it. A path that
 * ends in -00001-of-0000N.gguf opens all N parts. No tensor data is read.
 * owner    *out_file is the caller's, released with pe_file_close; the files must
 *          not be changed while open
 * errors   PE_ERR_IO, PE_ERR_FORMAT, PE_ERR_UNSUPPORTED, PE_ERR_NOMEM */
pe_status pe_file_open(pe_file **out_file, const char *path, pe_error *err);

/* Releases the caller's reference; NULL is allowed. */
void pe_file_close(pe_file *file);

void pe_file_describe(pe_file_info *out_info, const pe_file *file);

/* The entry or tensor at an index; PE_ERR_ARG when there is none. */
pe_status pe_file_meta(pe_meta *out_meta, const pe_file *file, uint64_t index, pe_error *err);
pe_status pe_file_tensor(pe_tensor_info *out_tensor, const pe_file *file, uint64_t index,
                         pe_error *err);

/* ---- engine ----------------------------------------------------------- */

typedef struct pe_engine pe_engine;

/* Instruction sets, each allowing those below it on the same processor family and
 * SCALAR; x86 up to 15, Arm from 16. All give the same bits. */
typedef enum pe_isa {
    PE_ISA_BEST = 0,  // the best this processor has
    PE_ISA_SCALAR = 1,
    PE_ISA_AVX2 = 2,      // with FMA and F16C
    PE_ISA_AVX_VNNI = 3,  // AVX2 with VPDPBUSD, as processors without AVX-512 have it
    PE_ISA_AVX512 = 4,    // F, BW, VL, DQ and VNNI
    PE_ISA_NEON = 16,     // as every 64-bit Arm has it
    PE_ISA_DOTPROD = 17,  // with SDOT
    PE_ISA_I8MM = 18      // with SMMLA too
} pe_isa;

/* How keys and values are stored. */
typedef enum pe_kv_type {
    PE_KV_AUTO = 0,  // F32 when every matrix of the model is F32, else F16
    PE_KV_F32 = 1,
    PE_KV_F16 = 2,
    PE_KV_Q8_0 = 3,  // rotated by a Hadamard matrix first, docs/adr/0004
    PE_KV_Q4_0 = 4   // the same
} pe_kv_type;

/* Whether weights are kept in memory a second time, interleaved as kernels of several rows
 * like them; the mapped ones are given back to the system then. Results do not change. */
typedef enum pe_resident_mode {
    PE_RESIDENT_AUTO = 0,  // where it is faster and memory suffices; a share after each pass
    PE_RESIDENT_OFF = 1,   // weights are read where they are mapped
    PE_RESIDENT_ON = 2     // all at open; an error where it cannot be
} pe_resident_mode;

/* Zero means "choose for me" in every field but struct_bytes. */
typedef struct pe_engine_params {
    uint32_t struct_bytes;  // sizeof(pe_engine_params) of the caller
    uint32_t n_ctx;         // positions a session may hold; 0: as the model was trained for
    uint32_t n_threads;     // workers, the calling thread included; 0: usable cores
    uint32_t n_batch;       // tokens per pass; bounds scratch memory; 0: 256
    uint32_t isa;           // pe_isa
    uint32_t kv_type;       // pe_kv_type
    uint32_t resident;      // pe_resident_mode
    uint64_t max_kv_bytes;  // KV pages and recurrent states of all sessions together; 0:
                            // bounded by n_ctx alone
} pe_engine_params;

/* How the hidden states of a text's tokens become one vector; numbers are GGUF's. */
typedef enum pe_pooling {
    PE_POOLING_NONE = 0,  // they do not: a vector for each token
    PE_POOLING_MEAN = 1,  // their sum in order, divided by their number
    PE_POOLING_CLS = 2,   // the first
    PE_POOLING_LAST = 3,
    PE_POOLING_UNSAID = 255  // as the file says, and in pe_engine_info that it does not
} pe_pooling;

typedef struct pe_engine_info {
    const char *architecture;  // GGUF name, "llama"; lives as long as the engine
    const char *isa;           // "avx2"; static storage
    uint32_t n_vocab;
    uint32_t n_ctx;
    uint32_t n_ctx_train;
    uint32_t n_layers;
    uint32_t d_model;
    uint32_t n_heads;
    uint32_t n_kv_heads;
    uint32_t n_threads;
    uint32_t n_batch;
    uint32_t kv_type;        // pe_kv_type, never AUTO
    uint64_t weight_bytes;   // all tensors, mapped
    uint64_t decode_bytes;   // weights read to decode one token
    uint64_t scratch_bytes;  // taken at open
    uint64_t kv_page_bytes;  // taken per PE_PAGE_TOKENS positions of a session
    uint64_t kv_bytes;       // in pages and states now, by all sessions
    uint64_t kv_bytes_peak;
    uint32_t is_encoder;      // 1: every token sees the whole text; it embeds and never generates
    uint32_t pooling;         // pe_pooling
    uint64_t resident_bytes;  // weights kept interleaved so far
    uint64_t resident_bytes_goal;  // and when all that gain by it are
    const char *resident_why;      // why, in words; lives as long as the engine
    uint64_t state_bytes;          // recurrent layers' memory of the past: taken per session, per
                                   // checkpoint, and while a shared one is written; 0: none
} pe_engine_info;

/* Whether this build can run the file: binds every weight, takes no memory.
 * errors   as pe_engine_open */
pe_status pe_file_check(const pe_file *file, pe_error *err);

/* Binds a model to its file, starts the threads and takes the scratch memory.
 * owner    *out_engine is the caller's, released with pe_engine_close
 * threads  calls on one engine and its sessions wait for each other; in a child made
 *          by fork() they fail with PE_ERR_ARG, and freeing does nothing
 * errors   PE_ERR_ARG          a parameter is outside its range
 *          PE_ERR_UNSUPPORTED  architecture, tensor type or feature, named
 *          PE_ERR_FORMAT       a weight or hyper-parameter is missing or mis-shaped
 *          PE_ERR_NOMEM        working memory, or PE_RESIDENT_ON with too little for it;
 *                              PE_ERR_UNSUPPORTED too where nothing would be gained */
pe_status pe_engine_open(pe_engine **out_engine, pe_file *file, const pe_engine_params *params,
                         pe_error *err);

/* Releases the caller's reference; NULL is allowed. Memory goes back when the
 * last session of the engine is freed too. */
void pe_engine_close(pe_engine *engine);

void pe_engine_describe(pe_engine_info *out_info, pe_engine *engine);

/* ---- sessions --------------------------------------------------------- */

typedef struct pe_session pe_session;

/* Starts an empty timeline. It takes KV pages as positions fill.
 * errors   PE_ERR_UNSUPPORTED for an encoder, PE_ERR_NOMEM */
pe_status pe_session_new(pe_session **out_session, pe_engine *engine, pe_error *err);

/* Starts a timeline that shares all of another's pages; the first write to a
 * shared page copies that page. */
pe_status pe_session_fork(pe_session **out_session, pe_session *session, pe_error *err);

/* Frees the session and its unshared pages; NULL is allowed. */
void pe_session_free(pe_session *session);

/* Positions held. */
uint32_t pe_session_n_tokens(const pe_session *session);

/* Drops all positions from n_tokens on. Where the model has recurrent layers, the tokens behind
 * the nearest checkpoint in front are computed again when the session is fed, fewer than twice as
 * many as were dropped and 64, unless memory for checkpoints was lacking; bits stay the same.
 * errors   PE_ERR_ARG when the session holds fewer */
pe_status pe_session_rewind(pe_session *session, uint32_t n_tokens, pe_error *err);

/* Tokens to append to one session, and where its logits go. */
typedef struct pe_feed {
    pe_session *session;
    const uint32_t *tokens;
    uint32_t n_tokens;  // at least 1
    uint32_t n_logits;  // the last n_logits of the tokens get logits; 0: none
    float *logits;      // [n_logits][n_vocab], the caller's; NULL when n_logits is 0
} pe_feed;

/* Appends tokens to sessions of this engine and computes logits. Each session
 * may appear once. Feeding n tokens at once, one by one, cut anywhere, or beside
 * other sessions gives the same bits.
 *
 * cancel   may be NULL; when another thread sets *cancel to non-zero the call
 *          returns PE_ERR_CANCELLED within about one layer's time
 * errors   PE_ERR_ARG (a token outside the vocabulary), PE_ERR_CONTEXT,
 *          PE_ERR_NOMEM, PE_ERR_NUMERIC, PE_ERR_CANCELLED; after any of them
 *          every session holds what it held before */
pe_status pe_engine_forward(pe_engine *engine, const pe_feed *feeds, uint32_t n_feeds,
                            const int32_t *cancel, pe_error *err);

/* ---- layers by themselves ---------------------------------------------- */

/* What a matrix is multiplied with, for those who choose how weights are stored. */
typedef struct pe_tap {
    uint32_t tensor;   // index in the file, of a matrix; of the token embedding: as the head
    float *rows;       // the caller's, or NULL: [n_tokens][n_cols], inputs of the run's tokens in
                       // order; not written for stacked matrices (experts)
    float *residual;   // the caller's, or NULL: [n_tokens][d_model], the residual stream then
    double *sums;      // the caller's, or NULL: [n_stacked][n_cols], squares are added
    uint64_t *counts;  // beside sums: [n_stacked], tokens are added
    uint32_t order;    // out: 0: never multiplied, else 1 for the first product of those tapped,
                       // and so on; the same where they were one operation
} pe_tap;

/* A run of some layers over the tokens of one text. */
typedef struct pe_layer_run {
    uint32_t struct_bytes;
    uint32_t first_layer;  // 0: from the tokens' embeddings
    uint32_t end_layer;    // up to before this one; n_layers + 1: the last norm and the head too
    uint32_t n_tokens;     // 1 to n_ctx
    const uint32_t *tokens;
    float *x;       // the caller's [n_tokens][d_model]: the residual stream in front of first_layer
                    // (not read for 0), then behind the last layer run, or behind the last norm
    float *logits;  // the caller's [n_tokens][n_vocab] for n_layers + 1, or NULL
    pe_tap *taps;
    uint32_t n_taps;
    uint32_t ends_with_taps;  // 1: over when every tap has seen its product; x is then the residual
                              // stream as it stood
} pe_layer_run;

/* Runs layers over a text from position 0; the session must be empty and is empty again after
 * it. Layer by layer gives the bits of pe_engine_forward. Of matrices fused into one
 * tensor the first that is multiplied is what a tap sees.
 *
 * cancel   as pe_engine_forward
 * errors   as pe_engine_forward; PE_ERR_UNSUPPORTED for a range that does not begin at layer 0
 *          where layers use what earlier ones stored (shared keys and values) */
pe_status pe_session_run_layers(pe_session *session, const pe_layer_run *run, const int32_t *cancel,
                                pe_error *err);

/* ---- embedding -------------------------------------------------------- */

/* A text to embed, and where its vector goes. */
typedef struct pe_text {
    const uint32_t *tokens;
    uint32_t n_tokens;  // 1 to the engine's n_ctx
    float *vectors;     // the caller's: [d_model]; PE_POOLING_NONE: [n_tokens][d_model]
} pe_text;

typedef struct pe_embed_params {
    uint32_t struct_bytes;
    uint32_t pooling;    // pe_pooling
    uint32_t normalize;  // 1: each vector is divided by its length, unless that is 0
    uint64_t first;      // what messages call the first text
} pe_embed_params;

/* Turns texts into what lies behind the model's last norm, in as few passes as n_batch allows.
 * Needs no session, keeps nothing: a text's pages go when it is done. A text alone or among
 * others, in any order, gives the same bits.
 *
 * cancel   as pe_engine_forward
 * errors   PE_ERR_ARG (a token outside the vocabulary, no pooling known), PE_ERR_CONTEXT,
 *          PE_ERR_NOMEM, PE_ERR_NUMERIC, PE_ERR_CANCELLED */
pe_status pe_engine_embed(pe_engine *engine, const pe_text *texts, uint32_t n_texts,
                          const pe_embed_params *params, const int32_t *cancel, pe_error *err);

/* ---- sampling --------------------------------------------------------- */

typedef struct pe_sampler pe_sampler;

/* Applied in this order: bias, penalties, top_k, top_p, min_p, temperature. */
typedef struct pe_sampler_params {
    uint32_t struct_bytes;
    float temperature;        // >= 0; 0 picks the largest logit, the lowest id on a tie
    uint32_t top_k;           // 0: off
    float top_p;              // (0, 1]; 1: off
    float min_p;              // [0, 1]; 0: off
    float repeat_penalty;     // > 0; 1: off (arXiv:1909.05858)
    float presence_penalty;   // 0: off
    float frequency_penalty;  // 0: off
    uint32_t penalty_window;  // last accepted tokens that penalties see; 0: none
    uint64_t seed;
} pe_sampler_params;

/* owner    copies bias_tokens and bias_values ([n_biases] each); released with
 *          pe_sampler_free
 * threads  one caller at a time per sampler
 * errors   PE_ERR_ARG names the parameter and its range, or a token biased twice;
 *          PE_ERR_NOMEM */
pe_status pe_sampler_new(pe_sampler **out_sampler, const pe_sampler_params *params,
                         const uint32_t *bias_tokens, const float *bias_values, uint32_t n_biases,
                         pe_error *err);

void pe_sampler_free(pe_sampler *sampler);

/* Adds a token to the history that penalties look at. */
void pe_sampler_accept(pe_sampler *sampler, uint32_t token);

/* Picks a token; does not accept it.
 * errors   PE_ERR_NUMERIC names the first logit that is NaN or infinite;
 *          PE_ERR_ARG for a bias outside n_vocab; PE_ERR_NOMEM (first call) */
pe_status pe_sampler_pick(pe_sampler *sampler, uint32_t *out_token, const float *logits,
                          uint32_t n_vocab, pe_error *err);

/* The whole random state; setting it replays what followed. */
uint64_t pe_sampler_state(const pe_sampler *sampler);
void pe_sampler_set_state(pe_sampler *sampler, uint64_t state);

/* Natural-log probabilities of one target token per row of logits.
 * shape    logits [n_rows][n_vocab], targets and out_logprobs [n_rows]
 * errors   PE_ERR_ARG (a target outside the vocabulary), PE_ERR_NUMERIC */
pe_status pe_logprobs(float *out_logprobs, const float *logits, const uint32_t *targets,
                      uint64_t n_rows, uint32_t n_vocab, pe_error *err);

/* The k most likely tokens of one row, most likely first, lowest id on a tie.
 * errors   PE_ERR_ARG for k 0 or above n_vocab, PE_ERR_NUMERIC */
pe_status pe_top_logprobs(uint32_t *out_tokens, float *out_logprobs, uint32_t k,
                          const float *logits, uint32_t n_vocab, pe_error *err);

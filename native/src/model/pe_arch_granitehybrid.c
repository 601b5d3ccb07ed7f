/* Granite 4: most layers are Mamba-2, a few attention, often without rotation; dense, or experts
 * of which one sees every token. A layer without KV heads is Mamba-2.
 */
#include "pe_arch_rows.h"

static const pe_hparam_row HPARAMS[] = {
    PE_HPARAMS_PLAIN,
    PE_HPARAMS_HAS_ROPE,
    PE_ROW("ssm.conv_kernel", n_conv, U32, ERROR, 0),
    PE_ROW("ssm.inner_size", d_inner, U32, ERROR, 0),
    PE_ROW("ssm.state_size", d_state, U32, ERROR, 0),
    PE_ROW("ssm.time_step_rank", n_ssm_heads, U32, ERROR, 0),
    PE_ROW("ssm.group_count", n_ssm_groups, U32, ERROR, 0),
};

static const pe_slot_row SLOTS[] = {
    PE_SLOTS_MODEL,
    PE_SLOTS_ROPE,
    PE_SLOTS_PRE_NORMS,
    PE_SLOTS_ATTN,
    PE_RECURRENT(PE_W_SSM_IN, "blk.ssm_in.weight", SSM_IN, MODEL, 0),
    PE_RECURRENT(PE_W_SSM_CONV, "blk.ssm_conv1d.weight", SSM_CONV, CONV, PE_SLOT_VECTOR),
    PE_RECURRENT(PE_W_SSM_CONV_BIAS, "blk.ssm_conv1d.bias", ONE, SSM_CONV,
                 PE_SLOT_VECTOR | PE_SLOT_OPTIONAL),
    PE_RECURRENT(PE_W_SSM_DT_BIAS, "blk.ssm_dt.bias", ONE, SSM_HEADS, PE_SLOT_VECTOR),
    PE_RECURRENT(PE_W_SSM_A, "blk.ssm_a", SSM_HEADS, ONE, PE_SLOT_VECTOR),
    PE_RECURRENT(PE_W_SSM_D, "blk.ssm_d", SSM_HEADS, ONE, PE_SLOT_VECTOR),
    PE_RECURRENT(PE_W_SSM_NORM, "blk.ssm_norm.weight", SSM_GROUPS, SSM_GROUP, PE_SLOT_VECTOR),
    PE_RECURRENT(PE_W_SSM_OUT, "blk.ssm_out.weight", MODEL, INNER, 0),
    PE_SLOTS_FFN,
    PE_SLOTS_EXPERTS,
    PE_SLOTS_SHARED,
};

#define ATTENTION PE_DO_WITH(RMS_NORM, ATTN_NORM), PE_DO(QKV), PE_DO(ROPE_PAIRS), PE_STEPS_ATTEND
#define MAMBA                                                                                      \
    PE_DO_WITH(RMS_NORM, ATTN_NORM), PE_DO(MAMBA2), PE_DO_WITH(PROJECT, SSM_OUT), PE_DO(ADD)
#define DENSE PE_DO_WITH(RMS_NORM, FFN_NORM), PE_STEPS_SWIGLU
#define MIXTURE PE_DO_WITH(RMS_NORM, FFN_NORM), PE_DO(EXPERTS), PE_DO(SHARED)

static const pe_step ATTENTION_DENSE[] = {ATTENTION, DENSE};
static const pe_step ATTENTION_EXPERTS[] = {ATTENTION, MIXTURE};
static const pe_step MAMBA_DENSE[] = {MAMBA, DENSE};
static const pe_step MAMBA_EXPERTS[] = {MAMBA, MIXTURE};

const pe_arch pe_arch_granitehybrid = {
    .name = "granitehybrid",
    PE_TABLES(HPARAMS, SLOTS),
    .layers = {[PE_LAYER_DENSE] = PE_STEP_LIST(ATTENTION_DENSE),
               [PE_LAYER_EXPERTS] = PE_STEP_LIST(ATTENTION_EXPERTS)},
    .state = PE_STATE_MAMBA2,
    .recurrent = {[PE_LAYER_DENSE] = PE_STEP_LIST(MAMBA_DENSE),
                  [PE_LAYER_EXPERTS] = PE_STEP_LIST(MAMBA_EXPERTS)},
};

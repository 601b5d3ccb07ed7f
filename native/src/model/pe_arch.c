/* The architectures this build knows: the only list of them. */
#include "pe_arch.h"

static const pe_arch *const ARCHS[] = {
    // clang-format off
    &pe_arch_bert,
    &pe_arch_deepseek2,
    &pe_arch_gemma2,
    &pe_arch_gemma3,
    &pe_arch_gemma4,
    &pe_arch_gemma_embedding,
    &pe_arch_gpt_oss,
    &pe_arch_granite,
    &pe_arch_granitehybrid,
    &pe_arch_granitemoe,
    &pe_arch_lfm2,
    &pe_arch_llama,
    &pe_arch_mistral3,
    &pe_arch_nomic_bert,
    &pe_arch_olmo2,
    &pe_arch_phi3,
    &pe_arch_qwen2,
    &pe_arch_qwen3,
    &pe_arch_qwen35,
    &pe_arch_qwen35moe,
    &pe_arch_qwen3moe,
    &pe_arch_qwen3next,
    &pe_arch_smollm3,
    // clang-format on
};

const pe_arch *pe_arch_at(size_t index) {
    return index < PE_LEN(ARCHS) ? ARCHS[index] : NULL;
}

#include "app/config/keys.h"

namespace chaski {
namespace {

template <auto Member>
ConfigField moc_field(TrainConfig& config) {
  return field_of(config.model.moc.*Member);
}
template <auto Member>
ConfigField shape_field(TrainConfig& config) {
  return field_of(config.model.llama.*Member);
}

const char* const kShapeDefault = "the preset's; required without one";

}  // namespace

std::vector<ConfigKey> model_keys() {
  return {
      {.name = "preset",
       .field = field<&TrainConfig::model, &ModelConfig::preset>,
       .documentation = "a named shape; keys given beside it replace its values",
       .choices = llama_preset_names(),
       .default_text = "none",
       .synonyms = {"model", "name", "flavor", "size"}},
      {.name = "hidden_size",
       .field = shape_field<&LlamaConfig::hidden_size>,
       .documentation = "width of the residual stream",
       .range = between(1, 1 << 20),
       .default_text = kShapeDefault,
       .synonyms = {"dim", "d_model", "n_embd", "embedding_dim", "width"}},
      {.name = "intermediate_size",
       .field = shape_field<&LlamaConfig::intermediate_size>,
       .documentation = "width of the feed-forward network",
       .range = between(1, 1 << 22),
       .default_text = kShapeDefault,
       .synonyms = {"ffn_dim", "d_ff", "ffn_hidden_size", "hidden_dim"}},
      {.name = "num_layers",
       .field = shape_field<&LlamaConfig::num_layers>,
       .documentation = "number of blocks",
       .range = between(1, 100000),
       .default_text = kShapeDefault,
       .synonyms = {"num_hidden_layers", "n_layers", "n_layer", "layers", "depth"}},
      {.name = "num_heads",
       .field = shape_field<&LlamaConfig::num_heads>,
       .documentation = "attention heads of the queries",
       .range = between(1, 65536),
       .default_text = kShapeDefault,
       .synonyms = {"num_attention_heads", "n_heads", "n_head", "heads"}},
      {.name = "num_kv_heads",
       .field = shape_field<&LlamaConfig::num_kv_heads>,
       .documentation = "attention heads of keys and values; divides num_heads",
       .range = between(1, 65536),
       .default_text = "num_heads",
       .synonyms = {"num_key_value_heads", "n_kv_heads", "kv_heads"}},
      {.name = "head_dim",
       .field = shape_field<&LlamaConfig::head_dim>,
       .documentation = "width of a head; even",
       .range = between(2, 256),
       .default_text = "hidden_size / num_heads",
       .synonyms = {"head_size", "d_head"}},
      {.name = "vocab_size",
       .field = shape_field<&LlamaConfig::vocab_size>,
       .documentation = "entries of the vocabulary; the tokenizer must not have more",
       .range = between(2, 1 << 26),
       .default_text = kShapeDefault,
       .synonyms = {"vocab", "vocabulary_size", "n_vocab", "vocabulary"}},
      {.name = "max_position_embeddings",
       .field = shape_field<&LlamaConfig::max_position_embeddings>,
       .documentation = "longest sequence that the model is meant for",
       .range = between(1, 1 << 26),
       .synonyms = {"max_seq_len", "n_positions", "context_length", "n_ctx", "block_size"}},
      {.name = "rope_theta",
       .field = shape_field<&LlamaConfig::rope_theta>,
       .documentation = "base of the rotary embedding's wavelengths",
       .range = above(0),
       .synonyms = {"rotary_base", "rope_base"}},
      {.name = "rms_norm_eps",
       .field = shape_field<&LlamaConfig::rms_norm_eps>,
       .documentation = "added to the mean square in RMSNorm",
       .range = above(0),
       .synonyms = {"norm_eps", "layer_norm_eps", "norm_epsilon"}},
      {.name = "tie_embeddings",
       .field = shape_field<&LlamaConfig::tie_embeddings>,
       .documentation = "whether the head uses the embedding's weights",
       .synonyms = {"tie_word_embeddings", "tied_embeddings", "weight_tying"}},
      {.name = "initializer_range",
       .field = shape_field<&LlamaConfig::initializer_range>,
       .documentation = "standard deviation of the initial weights (norms start at 1)",
       .range = at_least(0),
       .synonyms = {"init_std", "init_method_std"}},
      {.name = "ffn",
       .field = field<&TrainConfig::model, &ModelConfig::ffn>,
       .documentation = "kind of feed-forward network; moc, Mixture-of-Channels: a SwiGLU of which "
                        "each token uses the channels with the largest gates",
       .choices = {"swiglu", "moc"},
       .synonyms = {"hidden_act", "activation", "mlp", "feed_forward"}},
      {.name = "recompute",
       .field = field<&TrainConfig::model, &ModelConfig::recompute>,
       .documentation = "what the backward pass computes again instead of keeping it: elementwise, "
                        "the activations of the feed-forward network between its products; block, "
                        "all but the input of each block; none: no activation of the feed-forward "
                        "network",
       .choices = {"none", "elementwise", "block"},
       .synonyms = {"activations", "activation_checkpointing", "gradient_checkpointing",
                    "recompute_granularity", "recompute_elementwise", "checkpoint_activations"}},
  };
}

std::vector<ConfigKey> moc_keys() {
  return {
      {.name = "keep",
       .field = moc_field<&MocTable::keep>,
       .documentation = "channels that a token uses: a count, or, written with a point, a share of "
                        "intermediate_size (at least one channel)",
       .default_text = "hidden_size / 2 or all; with pattern = \"2:8\" what that keeps",
       .synonyms = {"k", "top_k", "topk", "num_channels", "keep_ratio"}},
      {.name = "pattern",
       .field = moc_field<&MocTable::pattern>,
       .documentation = "topk: the largest of all channels; 2:8: the two largest of each eight "
                        "neighbours (at most two of a shorter group at the end)",
       .choices = {"topk", "2:8"},
       .synonyms = {"structure", "sparsity"}},
      {.name = "selection",
       .field = moc_field<&MocTable::selection>,
       .documentation =
           "what the largest is of: the signed gate before SiLU, or, for ablations, the "
           "magnitude of SiLU",
       .choices = {"gate", "silu-magnitude"},
       .synonyms = {"score", "criterion"}},
      {.name = "index",
       .field = moc_field<&MocTable::index>,
       .documentation = "how the channels of a token are kept for the backward pass: two bytes for "
                        "each that it uses, a bit for each that there is, or whichever is less",
       .choices = {"auto", "uint16", "bitmap"},
       .synonyms = {"index_dtype", "index_type"}},
  };
}

std::vector<ConfigKey> data_keys() {
  return {
      {.name = "train",
       .field = field<&TrainConfig::data, &DataConfig::train>,
       .documentation = "token files made by `chaski tokenize`: paths or globs; their train parts "
                        "are read",
       .default_text = "required",
       .synonyms = {"train_files", "path", "files", "dataset", "train_data", "data_path"}},
      {.name = "validation",
       .field = field<&TrainConfig::data, &DataConfig::validation>,
       .documentation = "token files of which the validation part is read (the whole file where it "
                        "has no such part)",
       .default_text = "the validation parts of the files of train",
       .synonyms = {"valid", "val", "eval", "validation_files", "val_data"}},
      {.name = "tokenizer",
       .field = field<&TrainConfig::data, &DataConfig::tokenizer>,
       .documentation = "SentencePiece model with which the token files must have been made",
       .default_text = "not checked: token files hold their tokenizer",
       .synonyms = {"tokenizer_path", "tokenizer_model"}},
      {.name = "sequence_length",
       .field = field<&TrainConfig::data, &DataConfig::sequence_length>,
       .documentation = "tokens of a row; at most model.max_position_embeddings",
       .range = between(1, 1 << 26),
       .synonyms = {"seq_len", "seq_length", "max_length", "max_seq_len", "block_size"}},
      {.name = "reset_at_documents",
       .field = field<&TrainConfig::data, &DataConfig::reset_at_documents>,
       .documentation = "whether attention and positions begin anew where a document begins within "
                        "a row",
       .synonyms = {"reset_attention_mask", "reset_position_ids", "document_mask"}},
      {.name = "shuffle",
       .field = field<&TrainConfig::data, &DataConfig::shuffle>,
       .documentation = "whether rows are read in an order of their own in each epoch (it follows "
                        "from seed and epoch), or as they lie in the files"},
      {.name = "prefetch",
       .field = field<&TrainConfig::data, &DataConfig::prefetch>,
       .documentation = "micro-batches read ahead by a thread of its own",
       .range = between(1, 4096),
       .synonyms = {"prefetch_factor"}},
  };
}

}  // namespace chaski

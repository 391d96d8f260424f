"""GGUF files of tiny Llamas, as llama.cpp's converter and quantizer write them."""

import json

import numpy as np


def write_gguf(model, tokenizer, file, quantization=None):
    """Write a Llama and its tokenizer; matrices whose rows are whole blocks as `quantization` (a name, as Q8_0)."""
    import gguf

    settings, writer = model.config, gguf.GGUFWriter(file, "llama")
    for number, add in {
        settings.num_hidden_layers: writer.add_block_count,
        settings.max_position_embeddings: writer.add_context_length,
        settings.hidden_size: writer.add_embedding_length,
        settings.intermediate_size: writer.add_feed_forward_length,
        settings.num_attention_heads: writer.add_head_count,
        settings.rms_norm_eps: writer.add_layer_norm_rms_eps,
        settings.head_dim: writer.add_rope_dimension_count,
        settings.vocab_size: writer.add_vocab_size,
        tokenizer.pad_token_id: writer.add_pad_token_id,
        tokenizer.eos_token_id: writer.add_eos_token_id,
    }.items():
        add(number)
    writer.add_head_count_kv(settings.num_key_value_heads)
    write_vocabulary(writer, tokenizer, settings.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, settings.num_hidden_layers)
    for name, weight in model.state_dict().items():
        array = weight.numpy()
        heads = {"q_proj": settings.num_attention_heads, "k_proj": settings.num_key_value_heads}.get(name.split(".")[-2])
        if heads:  # llama.cpp rotates neighbours, transformers halves
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        array, kind = np.ascontiguousarray(array), None
        if quantization is not None and array.ndim > 1 and array.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType[quantization]
            array = gguf.quants.quantize(array, kind)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_vocabulary(writer, tokenizer, rows):
    """Add a byte-level BPE in GGUF's terms."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(backend["vocab"], key=backend["vocab"].get)
    tokens += [f"<unused{number}>" for number in range(rows - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges([" ".join(pair) for pair in backend["merges"]])
    writer.add_token_types([3 if token in tokenizer.all_special_tokens else 1 for token in tokens])

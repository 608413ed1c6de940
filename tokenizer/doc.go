// Package tokenizer reads Hugging Face's tokenizer.json for the byte-level BPE families (GPT-2, Llama 3, Qwen 2 and 3,
// SmolLM2) and gives the ids that Hugging Face's tokenizers library gives, on every text.
//
// Text goes through five stages:
//
//	text ─ added tokens cut out ─ NFC ─ normalized added tokens cut out ─ pre-tokens ─ merges ─ ids
//
// What is exact and what is refused: Load accepts only the settings it reproduces and names the first one it does not
// know. Which code points are letters, numbers or spaces, and what NFC does to them, is taken from the library itself
// (unicode_tables.go): it mixes several Unicode versions, none of which is Go's.
//
// A Tokenizer never changes after Load, apart from a bounded cache of merged pieces, and may be used by many goroutines.
package tokenizer

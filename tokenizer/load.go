package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// UnsupportedError says that a tokenizer asks for something that is not reproduced exactly.
type UnsupportedError struct {
	Part string // where in tokenizer.json: "pre_tokenizer", "model", …
	What string
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("tokenizer.json: %s: %s is not supported; byte-level BPE of the GPT-2, Llama 3, Qwen 2/3 and SmolLM2 kinds is", e.Part, e.What)
}

func unsupported(part, format string, args ...any) error {
	return &UnsupportedError{part, fmt.Sprintf(format, args...)}
}

// Load reads a tokenizer.json. It returns an *UnsupportedError that names the first setting which it cannot reproduce
// exactly, and another error where the file is damaged.
func Load(data []byte) (*Tokenizer, error) {
	if err := checkText(data); err != nil {
		return nil, fmt.Errorf("tokenizer.json: %w", err)
	}
	top, err := parseObject(data, "tokenizer.json", "version", "truncation", "padding", "added_tokens", "normalizer",
		"pre_tokenizer", "post_processor", "decoder", "model")
	if err != nil {
		return nil, err
	}
	var version string
	if err := top.read("version", &version); err != nil {
		return nil, err
	}
	if version != "1.0" {
		return nil, unsupported("version", "%q", version)
	}
	for _, key := range []string{"truncation", "padding"} {
		if !isNull(top.values[key]) {
			return nil, unsupported(key, "cutting or filling texts in the tokenizer (set it to null)")
		}
	}
	t := &Tokenizer{ids: map[string]int32{}}
	for _, step := range []struct {
		key  string
		load func(json.RawMessage) error
	}{
		{"model", t.loadModel},
		{"normalizer", t.loadNormalizer},
		{"pre_tokenizer", t.loadPreTokenizer},
		{"decoder", t.loadDecoder},
		{"added_tokens", t.loadAddedTokens},
		{"post_processor", t.loadPostProcessor},
	} {
		if err := step.load(top.values[step.key]); err != nil {
			if _, named := errors.AsType[*UnsupportedError](err); named {
				return nil, err
			}
			return nil, fmt.Errorf("tokenizer.json: %w", err)
		}
	}
	return t, nil
}

func (t *Tokenizer) loadModel(raw json.RawMessage) error {
	kind, err := typeOf(raw, "model")
	if err != nil {
		return err
	}
	if kind != "BPE" {
		return unsupported("model", "type %q", kind)
	}
	o, err := parseObject(raw, "model", "type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
		"fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges")
	if err != nil {
		return err
	}
	var dropout float64
	var prefix, suffix string
	var unk *string
	err = errors.Join(o.read("dropout", &dropout), o.read("continuing_subword_prefix", &prefix),
		o.read("end_of_word_suffix", &suffix), o.read("unk_token", &unk))
	fuse, err2 := o.bool("fuse_unk", false)
	fallback, err3 := o.bool("byte_fallback", false)
	ignoreMerges, err4 := o.bool("ignore_merges", false)
	if err := errors.Join(err, err2, err3, err4); err != nil {
		return err
	}
	switch {
	case dropout != 0:
		return unsupported("model", "dropout %v (ids drawn by chance)", dropout)
	case prefix != "":
		return unsupported("model", "continuing_subword_prefix %q", prefix)
	case suffix != "":
		return unsupported("model", "end_of_word_suffix %q", suffix)
	case fallback:
		return unsupported("model", "byte_fallback")
	}
	if err := t.loadVocab(o.values["vocab"]); err != nil {
		return fmt.Errorf("model: vocab: %w", err)
	}
	t.bpe = bpe{fuseUnk: fuse, unk: unknown, cache: newPieceCache(), linearMaxLen: linearMaxLenStd}
	if err := t.loadBytes(unk); err != nil {
		return err
	}
	if err := t.loadMerges(o.values["merges"]); err != nil {
		return fmt.Errorf("model: merges: %w", err)
	}
	if ignoreMerges {
		t.bpe.whole = make(map[string]int32, len(t.ids))
		for token, id := range t.ids {
			if isByteLevel(token) {
				t.bpe.whole[string(appendTokenBytes(nil, token))] = id
			}
		}
	}
	return nil
}

const idSlack = 1 << 16 // ids may leave this many gaps and no more: a huge id must not make a huge table

func (t *Tokenizer) loadVocab(raw json.RawMessage) error {
	last := int32(-1)
	err := eachVocab(raw, func(token []byte, id int32) error {
		if _, twice := t.ids[string(token)]; twice {
			return fmt.Errorf("%q stands twice", token)
		}
		t.ids[string(token)] = id
		last = max(last, id)
		return nil
	})
	if err != nil {
		return err
	}
	if int(last) >= len(t.ids)+idSlack {
		return fmt.Errorf("%d tokens, but ids up to %d", len(t.ids), last)
	}
	t.modelSize = len(t.ids)
	t.tokens = make([]token, last+1)
	for text, id := range t.ids {
		if t.tokens[id].known {
			return fmt.Errorf("the id %d stands twice", id)
		}
		t.tokens[id] = token{text: text, known: true}
	}
	return nil
}

// loadBytes finds the token of every byte. Vocabularies may lack bytes that never stand in UTF-8 and some that rarely do.
func (t *Tokenizer) loadBytes(unk *string) error {
	missing := 0
	for b, r := range byteToRune {
		id, ok := t.ids[string(r)]
		if !ok {
			id = unknown
			missing++
		}
		t.bpe.byteID[b] = id
	}
	if missing > 0 && unk != nil {
		id, ok := t.ids[*unk]
		if !ok {
			return fmt.Errorf("model: unk_token %q is not in the vocabulary, and %d bytes have no token", *unk, missing)
		}
		t.bpe.unk = id
	}
	return nil
}

func (t *Tokenizer) loadMerges(raw json.RawMessage) error {
	count := 0
	if err := eachMerge(raw, func(_, _ []byte) error { count++; return nil }); err != nil {
		return err
	}
	t.bpe.merges = newMergeTable(count)
	rank := uint32(0)
	var whole []byte
	return eachMerge(raw, func(left, right []byte) error {
		whole = append(append(whole[:0], left...), right...)
		a, okA := t.ids[string(left)]
		b, okB := t.ids[string(right)]
		c, okC := t.ids[string(whole)]
		if !okA || !okB || !okC {
			return fmt.Errorf("number %d, %q + %q: one of the two or what they make is not in the vocabulary", rank, left, right)
		}
		t.bpe.merges.put(a, b, merge{rank, c})
		rank++
		return nil
	})
}

// parts returns the elements of a Sequence under key, or the component itself.
func parts(raw json.RawMessage, what, key string) ([]json.RawMessage, error) {
	kind, err := typeOf(raw, what)
	if err != nil || kind == "" {
		return nil, err
	}
	if kind != "Sequence" {
		return []json.RawMessage{raw}, nil
	}
	o, err := parseObject(raw, what, "type", key)
	if err != nil {
		return nil, err
	}
	return o.list(key)
}

func (t *Tokenizer) loadNormalizer(raw json.RawMessage) error {
	list, err := parts(raw, "normalizer", "normalizers")
	if err != nil {
		return err
	}
	for _, raw := range list {
		kind, err := typeOf(raw, "normalizer")
		if err != nil {
			return err
		}
		if kind != "NFC" {
			return unsupported("normalizer", "type %q", kind)
		}
		if _, err := parseObject(raw, "normalizer", "type"); err != nil {
			return err
		}
		t.nfc = true
	}
	return nil
}

func (t *Tokenizer) loadPreTokenizer(raw json.RawMessage) error {
	list, err := parts(raw, "pre_tokenizer", "pretokenizers")
	if err != nil {
		return err
	}
	for i, raw := range list {
		kind, err := typeOf(raw, "pre_tokenizer")
		if err != nil {
			return err
		}
		var scan scanner
		switch kind {
		case "Digits":
			scan, err = loadDigits(raw)
		case "Split":
			scan, err = loadSplit(raw)
		case "ByteLevel":
			if i != len(list)-1 {
				return unsupported("pre_tokenizer", "a step behind ByteLevel")
			}
			scan, err = loadByteLevel(raw)
		default:
			return unsupported("pre_tokenizer", "type %q", kind)
		}
		if err != nil {
			return err
		}
		if scan != nil {
			t.scanners = append(t.scanners, scan)
		}
		if kind == "ByteLevel" {
			return nil
		}
	}
	return unsupported("pre_tokenizer", "having no ByteLevel at its end")
}

func loadDigits(raw json.RawMessage) (scanner, error) {
	o, err := parseObject(raw, "pre_tokenizer: Digits", "type", "individual_digits")
	if err != nil {
		return nil, err
	}
	alone, err := o.bool("individual_digits", false)
	if alone {
		return scanDigits, err
	}
	return scanDigitRuns, err
}

func loadSplit(raw json.RawMessage) (scanner, error) {
	o, err := parseObject(raw, "pre_tokenizer: Split", "type", "pattern", "behavior", "invert")
	if err != nil {
		return nil, err
	}
	var behavior string
	if err := o.read("behavior", &behavior); err != nil {
		return nil, err
	}
	invert, err := o.bool("invert", false)
	if err != nil {
		return nil, err
	}
	if behavior != "Isolated" || invert {
		return nil, unsupported("pre_tokenizer", "Split with behavior %q, invert %v", behavior, invert)
	}
	pattern, err := parseObject(o.values["pattern"], "pre_tokenizer: Split: pattern", "Regex", "String")
	if err != nil {
		return nil, err
	}
	var regex string
	if err := pattern.read("Regex", &regex); err != nil {
		return nil, err
	}
	scan, ok := scanners[regex]
	if !ok || len(pattern.values) != 1 {
		return nil, unsupported("pre_tokenizer", "the Split pattern %s", o.values["pattern"])
	}
	return scan, nil
}

// loadByteLevel returns no scanner where the component only spells bytes.
func loadByteLevel(raw json.RawMessage) (scanner, error) {
	prefix, regex, err := readByteLevel(raw, "pre_tokenizer")
	if err != nil {
		return nil, err
	}
	if prefix {
		return nil, unsupported("pre_tokenizer", "ByteLevel with add_prefix_space")
	}
	if regex {
		return scanGPT2, nil
	}
	return nil, nil
}

func readByteLevel(raw json.RawMessage, part string) (prefix, regex bool, err error) {
	o, err := parseObject(raw, part+": ByteLevel", "type", "add_prefix_space", "trim_offsets", "use_regex")
	if err != nil {
		return false, false, err
	}
	prefix, err = o.bool("add_prefix_space", true)
	regex, err2 := o.bool("use_regex", true)
	_, err3 := o.bool("trim_offsets", true)
	return prefix, regex, errors.Join(err, err2, err3)
}

func (t *Tokenizer) loadDecoder(raw json.RawMessage) error {
	list, err := parts(raw, "decoder", "decoders")
	if err != nil {
		return err
	}
	if len(list) != 1 {
		return unsupported("decoder", "having no ByteLevel, or more than that,")
	}
	kind, err := typeOf(list[0], "decoder")
	if err != nil {
		return err
	}
	if kind != "ByteLevel" {
		return unsupported("decoder", "type %q", kind)
	}
	_, _, err = readByteLevel(list[0], "decoder")
	return err
}

func (t *Tokenizer) loadAddedTokens(raw json.RawMessage) error {
	var list []json.RawMessage
	if !isNull(raw) {
		if err := json.Unmarshal(raw, &list); err != nil {
			return fmt.Errorf("added_tokens: %w", err)
		}
	}
	var added []addedToken
	seen := map[string]bool{}
	next := int32(t.modelSize) // the id that the library gives to a token which the model does not know
	for _, raw := range list {
		if _, err := parseObject(raw, "added_tokens", "id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"); err != nil {
			return err
		}
		a := addedToken{ID: unknown}
		if err := json.Unmarshal(raw, &a); err != nil {
			return fmt.Errorf("added_tokens: %w", err)
		}
		if a.Content == "" || a.ID < 0 || seen[a.Content] {
			return fmt.Errorf("added_tokens: %q with the id %d: empty, without an id or there twice", a.Content, a.ID)
		}
		seen[a.Content] = true
		id, inModel := t.ids[a.Content]
		if !inModel {
			id = next
		}
		if id != a.ID {
			return fmt.Errorf("added_tokens: %q says its id is %d, but it will get %d", a.Content, a.ID, id)
		}
		if id >= next {
			next = id + 1
		}
		if err := t.addToken(a); err != nil {
			return err
		}
		added = append(added, a)
	}
	// Where two tokens are the same text after normalization, the library prefers special ones.
	slices.SortStableFunc(added, func(a, b addedToken) int {
		switch {
		case a.Special == b.Special:
			return 0
		case a.Special:
			return -1
		}
		return 1
	})
	var raws, normals []addedToken
	var rawTexts, normalTexts []string
	for _, a := range added {
		if !a.Normalized {
			raws, rawTexts = append(raws, a), append(rawTexts, a.Content)
			continue
		}
		text := a.Content
		if t.nfc {
			text = nfc(text)
		}
		if text != a.Content && a.Special {
			return unsupported("added_tokens", "%q, a special token that normalization changes,", a.Content)
		}
		t.tokens[a.ID].text = text // the library decodes to this
		normals, normalTexts = append(normals, a), append(normalTexts, text)
	}
	t.added, t.addedNormal = newMatcher(raws, rawTexts), newMatcher(normals, normalTexts)
	return nil
}

// addToken enters a into the tables of tokens.
func (t *Tokenizer) addToken(a addedToken) error {
	if int(a.ID) >= len(t.tokens)+idSlack {
		return fmt.Errorf("added_tokens: the id %d of %q is far behind the others", a.ID, a.Content)
	}
	for int(a.ID) >= len(t.tokens) {
		t.tokens = append(t.tokens, token{})
	}
	at := &t.tokens[a.ID]
	if at.known && at.text != a.Content {
		return fmt.Errorf("added_tokens: %q has the id %d of %q", a.Content, a.ID, at.text)
	}
	*at = token{text: a.Content, known: true, special: a.Special}
	t.ids[a.Content] = a.ID
	return nil
}

func (t *Tokenizer) loadPostProcessor(raw json.RawMessage) error {
	list, err := parts(raw, "post_processor", "processors")
	if err != nil {
		return err
	}
	for _, raw := range list {
		kind, err := typeOf(raw, "post_processor")
		if err != nil {
			return err
		}
		switch kind {
		case "ByteLevel": // changes offsets only
			_, _, err = readByteLevel(raw, "post_processor")
		case "TemplateProcessing":
			err = t.loadTemplate(raw)
		default:
			err = unsupported("post_processor", "type %q", kind)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// loadTemplate reads what stands before and behind a single text.
func (t *Tokenizer) loadTemplate(raw json.RawMessage) error {
	o, err := parseObject(raw, "post_processor: TemplateProcessing", "type", "single", "pair", "special_tokens")
	if err != nil {
		return err
	}
	type piece struct{ ID string }
	var single []struct{ SpecialToken, Sequence *piece }
	var special map[string]struct{ IDs []int32 }
	if err := errors.Join(o.read("single", &single), o.read("special_tokens", &special)); err != nil {
		return err
	}
	var before, behind []int32
	texts := 0
	for _, p := range single {
		switch {
		case p.Sequence != nil && p.SpecialToken == nil && p.Sequence.ID == "A":
			texts++
		case p.SpecialToken != nil && p.Sequence == nil:
			ids, ok := special[p.SpecialToken.ID]
			if !ok {
				return fmt.Errorf("post_processor: %q is not among special_tokens", p.SpecialToken.ID)
			}
			for _, id := range ids.IDs {
				if _, ok := t.Token(id); !ok {
					return fmt.Errorf("post_processor: the id %d of %q is no token", id, p.SpecialToken.ID)
				}
			}
			if texts == 0 {
				before = append(before, ids.IDs...)
			} else {
				behind = append(behind, ids.IDs...)
			}
		default:
			return unsupported("post_processor", "a piece that is neither a special token nor the text")
		}
	}
	if texts != 1 {
		return unsupported("post_processor", "a template in which the text stands %d times", texts)
	}
	t.before, t.behind = slices.Concat(before, t.before), slices.Concat(t.behind, behind)
	return nil
}

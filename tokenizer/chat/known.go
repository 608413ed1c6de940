package chat

import (
	"strings"

	"github.com/skein-ml/skein/tokenizer"
)

// ChatML is the template of the plain kind, written by this project: messages between <|im_start|>role and <|im_end|>,
// and no system message unless the dialogue has one.
const ChatML = `{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- endif %}`

// known is what must be known of a template beside its source.
type known struct {
	name    string
	start   string   // what stands before each turn of the assistant, and what a generation prompt ends with
	end     string   // the token that ends it
	control []string // special tokens that the template writes
}

var (
	chatML = known{
		name:    "ChatML",
		start:   "<|im_start|>assistant\n",
		end:     "<|im_end|>",
		control: []string{"<|im_start|>", "<|im_end|>"},
	}
	llama3 = known{
		name:    "Llama 3",
		start:   "<|start_header_id|>assistant<|end_header_id|>\n\n",
		end:     "<|eot_id|>",
		control: []string{"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|begin_of_text|>"},
	}
)

func named(k known, name string) known {
	k.name = name
	return k
}

// table holds the known templates by the SHA-256 of their source. To add one: give it to scripts/oracle/chat_golden.py,
// and see that the test of the golden renders passes.
var table = map[string]known{
	"6c6c49dc882d320ed8a6584ed85958f9d8e30560551735a06948619d7704df75": chatML,
	"872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788": named(chatML, "SmolLM2"),
	"e7a3df47d72feec173403ca6c63b3632edde3536fc0f5a4413ab432a2cfddb8d": chatML,
	"ba03a121d097859c7b5b9cd03af99aafe95275210d2876f642ad9929a150f122": llama3,
	"e7f0dce6b67524c32dc234d159dd4ce1cc92b74bc0ec905caa1b7765e448259e": llama3,
	"cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f": named(chatML, "Qwen 2.5"),
	"87a2728cb8dc9fe424d624542f6060ec05a1d285ebbec578bb078900e33396b5": named(chatML, "Qwen 3"),
}

// turns finds what the assistant says in a text in which no message spells a special token.
func (k known) turns(text string) []tokenizer.Span {
	var out []tokenizer.Span
	for at := 0; ; {
		start := strings.Index(text[at:], k.start)
		if start < 0 {
			return out
		}
		start += at + len(k.start)
		end := strings.Index(text[start:], k.end)
		if end < 0 {
			return out
		}
		at = start + end + len(k.end)
		out = append(out, tokenizer.Span{Start: start, End: at})
	}
}

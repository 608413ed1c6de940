package chat

import "testing"

func BenchmarkRenderTraining(b *testing.B) {
	tmpl := mustLoad(b, ChatML, nil)
	msgs := []Message{{Role: "system", Content: "Be brief."}, {Role: "user", Content: "Pronounce: skein"}, {Role: "assistant", Content: "S K EY1 N"}}
	for b.Loop() {
		if _, err := tmpl.RenderTraining(msgs, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}

package worker

import "testing"

func TestDialoguesOfOtherSpecialTokensAreNotTakenForTheSame(t *testing.T) {
	base := dialogueHash("{{ bos_token }}", map[string]string{"bos_token": "<s>", "eos_token": "</s>"})
	for name, other := range map[string]string{
		"another source": dialogueHash("{{ eos_token }}", map[string]string{"bos_token": "<s>", "eos_token": "</s>"}),
		"another token":  dialogueHash("{{ bos_token }}", map[string]string{"bos_token": "<|s|>", "eos_token": "</s>"}),
		"one token less": dialogueHash("{{ bos_token }}", map[string]string{"bos_token": "<s>"}),
		"swapped tokens": dialogueHash("{{ bos_token }}", map[string]string{"bos_token": "</s>", "eos_token": "<s>"}),
	} {
		if other == base {
			t.Errorf("%s: the same hash", name)
		}
	}
}

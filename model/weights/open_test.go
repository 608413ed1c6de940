package weights

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/skein-ml/skein/model/gguf"
	"github.com/skein-ml/skein/model/hf"
)

func TestFoldersAndGGUFAreToldApartByContent(t *testing.T) {
	raw, err := os.ReadFile("../gguf/testdata/tiny.gguf")
	if err != nil {
		t.Fatal(err)
	}
	odd := filepath.Join(t.TempDir(), "model.bin")
	if err := os.WriteFile(odd, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]reflect.Type{
		"../hf/testdata/llama-tied-bf16": reflect.TypeFor[*hf.Folder](),
		"../gguf/testdata/tiny.gguf":     reflect.TypeFor[*gguf.File](),
		odd:                              reflect.TypeFor[*gguf.File](),
	} {
		m, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if reflect.TypeOf(m) != want {
			t.Errorf("%s opened as %T, want %v", path, m, want)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestWhatIsNoModelIsRefusedInOneLine(t *testing.T) {
	empty := t.TempDir()
	for path, want := range map[string]string{
		"nowhere":      "there is no such folder or file",
		"open_test.go": "neither a folder nor a GGUF file",
		os.DevNull:     "neither a folder nor a GGUF file",
		empty:          "config.json is missing",
	} {
		m, err := Open(path)
		if err == nil || m != nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("Open(%s) = %v, %v; want an error with %q", path, m, err, want)
		}
	}
}

// TestAGGUFModelExportsAsAFolderOfTheSameValues is the path of skein import.
func TestAGGUFModelExportsAsAFolderOfTheSameValues(t *testing.T) {
	source, err := Open("../gguf/testdata/tiny.gguf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := source.Close(); err != nil {
			t.Error(err)
		}
	})
	dir := filepath.Join(t.TempDir(), "imported")
	if err := hf.Export(dir, source, hf.Options{DType: hf.F32}); err != nil {
		t.Fatal(err)
	}
	folder, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := folder.Close(); err != nil {
			t.Error(err)
		}
	})
	if !reflect.DeepEqual(folder.Config(), source.Config()) {
		t.Errorf("config %+v, want %+v", folder.Config(), source.Config())
	}
	for _, tensor := range source.Config().Tensors() {
		want, got := make([]float32, tensor.Elements()), make([]float32, tensor.Elements())
		if err := source.ReadRange(tensor.Name, 0, want); err != nil {
			t.Fatal(err)
		}
		if err := folder.ReadRange(tensor.Name, 0, got); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s differs", tensor.Name)
		}
	}
}

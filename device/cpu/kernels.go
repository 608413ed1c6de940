package cpu

import (
	"reflect"

	"github.com/skein-ml/skein/device/cpu/kernel"
)

// overlay lays the entries that a faster path has over those of base. Every entry
// of base is there, so every one of the result is.
func overlay(base, fast kernel.Table) kernel.Table {
	b, f := reflect.ValueOf(&base).Elem(), reflect.ValueOf(fast)
	for i := range b.NumField() {
		switch to, from := b.Field(i), f.Field(i); to.Kind() {
		case reflect.Array:
			for j := range to.Len() {
				if !from.Index(j).IsNil() {
					to.Index(j).Set(from.Index(j))
				}
			}
		case reflect.Func:
			if !from.IsNil() {
				to.Set(from)
			}
		case reflect.Int64: // Scratch
			to.SetInt(max(to.Int(), from.Int()))
		}
	}
	return base
}

package leader

import (
	"fmt"
	"testing"
)

func TestAddressesThatWereHeardOfAreAskedAfterThoseGiven(t *testing.T) {
	c, err := New(Config{Addresses: []string{"a:1", "b:1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Learn([]string{"c:1", "", "a:1", "c:1"})
	if got := fmt.Sprint(c.addresses()); got != "[a:1 b:1 c:1]" {
		t.Errorf("known are %s", got)
	}
	var asked []string
	for range 4 {
		asked = append(asked, c.Address())
		c.moved(c.Address(), nil)
	}
	if got := fmt.Sprint(asked); got != "[a:1 b:1 c:1 a:1]" {
		t.Errorf("asked are %s", got)
	}
	for i := range 2 * learnedMax {
		c.Learn([]string{fmt.Sprint("d:", i)})
	}
	if n := len(c.addresses()); n != 2+learnedMax {
		t.Errorf("%d addresses are kept", n)
	}
}

func TestWhoIsDoubtedIsNotAskedNext(t *testing.T) {
	c, err := New(Config{Addresses: []string{"a:1", "b:1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Doubt("b:1") // it is not asked anyway
	if got := c.Address(); got != "a:1" {
		t.Errorf("asked next is %s", got)
	}
	c.Doubt("a:1")
	c.Doubt("a:1") // twice is once
	if got := c.Address(); got != "b:1" {
		t.Errorf("asked next is %s", got)
	}
	c.Doubt("b:1")
	if got := c.Address(); got != "a:1" {
		t.Errorf("asked next is %s", got)
	}
	alone, err := New(Config{Addresses: []string{"a:1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer alone.Close()
	alone.Doubt("a:1")
	if got := alone.Address(); got != "a:1" {
		t.Errorf("the only one there is: %q", got)
	}
}

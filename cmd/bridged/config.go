package main

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"bridged/internal/bridge"
)

// configFlags are --config and a flag for each key of the configuration.
type configFlags struct {
	environ []string
	file    string
	values  map[string]*configFlag // by key
	set     *pflag.FlagSet
}

// addConfigFlags gives cmd the flags of every key for which include says so; nil: all.
func addConfigFlags(cmd *cobra.Command, environ []string, include func(key string) bool) *configFlags {
	f := &configFlags{environ: environ, values: map[string]*configFlag{}, set: cmd.Flags()}
	f.set.StringVarP(&f.file, "config", "c", envOf(environ, "BRIDGED_CONFIG"), "configuration file; by default "+bridge.DefaultConfigFile+" where it exists")
	for _, s := range bridge.Settings() {
		if include != nil && !include(s.Key) {
			continue
		}
		v := &configFlag{setting: s}
		f.values[s.Key] = v
		flag := f.set.VarPF(v, s.Flag, "", s.Usage)
		if s.IsBool() {
			flag.NoOptDefVal = "true"
		}
	}
	f.set.SortFlags = false
	return f
}

// sources is where the configuration comes from. It may be loaded again at any time.
func (f *configFlags) sources() bridge.Sources {
	flags := map[string]string{}
	for key, v := range f.values {
		if v.given {
			flags[key] = v.text
		}
	}
	return bridge.Sources{File: f.file, Environ: f.environ, Flags: flags}
}

// configFlag is the flag of one key. Its text is parsed where files and variables are,
// so that mistakes read the same.
type configFlag struct {
	setting bridge.Setting
	text    string
	given   bool
}

func (v *configFlag) String() string { return "" } // the default stands in Usage where it matters

func (v *configFlag) Set(text string) error {
	if v.given && v.setting.IsList() { // --group a --group b
		text = v.text + "," + text
	}
	v.text, v.given = text, true
	return nil
}

func (v *configFlag) Type() string {
	switch {
	case v.setting.IsBool():
		return "bool"
	case v.setting.IsList():
		return "list"
	}
	return "value"
}

func envOf(environ []string, name string) string {
	for _, kv := range environ {
		if n, v, ok := strings.Cut(kv, "="); ok && n == name {
			return v
		}
	}
	return ""
}

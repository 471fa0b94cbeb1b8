package bridge

func newMLBDialect(o *TranslateOptions) dialect {
	return &bridgeDialect{opts: o, ts: builtinTemplates()}
}

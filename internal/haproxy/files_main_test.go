package haproxy

import "flag"

var update = flag.Bool("update", false, "rewrite files below testdata")

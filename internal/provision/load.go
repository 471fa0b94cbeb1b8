package provision

// source is where a Cluster was read from, for positions in messages.
type source struct {
	file string
}

"""One file per way to split work: its time, byte and memory terms and its module wrapping."""

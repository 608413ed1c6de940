package skeinv1

// LineBytesMax is the longest JSON of a console event that a leader keeps; a worker
// sends none that is longer.
const LineBytesMax = 16 << 10

// Package standin is the outside world of a lab, for development and tests:
// kernelci-api (maestro), the artifact storage (storage) and kcidb-restd-rs with
// its ingester (kcidb), each as strict as the original, and fault injection in
// front of each (fault). A World holds one of each and offers jobs the way the
// KernelCI scheduler does.
//
// New makes a World without sockets, for testing/synctest bubbles: use its
// Transport. Start makes one that listens.
package standin

package lineage

import (
	"sync"
	"time"

	"github.com/pullab/pullab/pkg/kernelci"
)

// cache of nodes, bounded in number and age. The oldest goes first. Nodes in it
// are shared and must not be written to.
type cache struct {
	size int
	ttl  time.Duration

	mu    sync.Mutex
	nodes map[string]*kernelci.Node
	// order is by age; times belong to it.
	order []aged
}

type aged struct {
	id string
	at time.Time
}

func newCache(size int, ttl time.Duration) *cache {
	return &cache{size: size, ttl: ttl, nodes: map[string]*kernelci.Node{}}
}

func (c *cache) get(id string) *kernelci.Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expire(c.size)
	return c.nodes[id]
}

func (c *cache) put(id string, n *kernelci.Node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.nodes[id] != nil {
		return
	}
	c.expire(c.size - 1)
	c.nodes[id] = n
	c.order = append(c.order, aged{id, time.Now()})
}

// expire drops what is too old, and the oldest until at most keep are left.
func (c *cache) expire(keep int) {
	n := 0
	for n < len(c.order) && (len(c.order)-n > keep || time.Since(c.order[n].at) >= c.ttl) {
		delete(c.nodes, c.order[n].id)
		n++
	}
	c.order = c.order[n:]
}

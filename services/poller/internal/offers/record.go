package offers

import "time"

// Phase is how far an offer is. The poller alone moves it: seen to offered, seen
// to skipped and back, and offered to seen again when the offer is repeated.
type Phase string

// Phases.
const (
	// Seen: the job is about to be published, or was; whoever finds this
	// publishes it (again), under the same id.
	Seen Phase = "seen"
	// Offered: the broker has, or had, the offer.
	Offered Phase = "offered"
	// Skipped: deliberately not offered; Reason and Detail say why. It is judged
	// anew whenever it turns up again.
	Skipped Phase = "skipped"
)

// Record is a job's entry in pullab_offers, keyed by its node.
type Record struct {
	Phase Phase `json:"phase"`
	// Round counts offers from 1; 0 before the first. It is part of the
	// Nats-Msg-Id: the broker must take a repeated offer for a new message, and
	// the second publishing of one round for the same.
	Round  int    `json:"round,omitempty"`
	Reason string `json:"reason,omitempty"`
	Detail string `json:"detail,omitempty"`
	// Name and Platform of the job, for whoever reads the bucket.
	Name     string `json:"name,omitempty"`
	Platform string `json:"platform,omitempty"`
	// Event that made the poller look; empty when the sweep did.
	Event string `json:"event,omitempty"`
	// Times by the API's clock, as far as it is known.
	SeenAt    time.Time `json:"seen_at,omitzero"`
	OfferedAt time.Time `json:"offered_at,omitzero"`
	SkippedAt time.Time `json:"skipped_at,omitzero"`
}

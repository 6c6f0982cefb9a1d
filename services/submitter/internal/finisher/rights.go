package finisher

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/kernelci"
)

// Modes: whether nodes are written.
const (
	// On: always; what is refused waits.
	On = "on"
	// Off: never.
	Off = "off"
	// Auto: where /whoami says that the token's user may.
	Auto = "auto"
)

// askAgain is how long an answer of /whoami is trusted: rights are given while
// the lab runs.
const askAgain = 10 * time.Minute

// rights tells whether nodes of a runtime may be written.
type rights struct {
	mode string
	// token is false without one.
	token bool
	api   API

	mu    sync.Mutex
	user  kernelci.User
	asked time.Time
	// warned of a runtime, or "" of the token.
	warned map[string]bool
}

func (r *rights) mayEdit(ctx context.Context, runtime string) (bool, error) {
	switch {
	case r.mode == On:
		return true, nil
	case r.mode == Off:
		return false, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.token {
		r.warn(ctx, "", "nodes are not finished: there is no kernelci.api_token (KERNELCI_API_TOKEN); KernelCI will time them out")
		return false, nil
	}
	if r.asked.IsZero() || time.Since(r.asked) >= askAgain {
		u, err := r.api.WhoAmI(ctx)
		var ae *kernelci.APIError
		switch {
		case errors.As(err, &ae) && (ae.Status == http.StatusUnauthorized || ae.Status == http.StatusForbidden):
			r.warn(ctx, "", "nodes are not finished: kernelci-api refuses the token; KernelCI will time them out")
			u = kernelci.User{}
		case err != nil:
			return false, err
		}
		r.user, r.asked = u, time.Now()
	}
	may := r.user.MayEdit(runtime)
	if !may && r.user.Username != "" {
		r.warn(ctx, runtime, "nodes are not finished: the token's user is in no group that may edit nodes of this runtime; KernelCI will time them out")
	}
	return may, nil
}

// doubt makes the next question go to the API.
func (r *rights) doubt() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = time.Time{}
}

func (r *rights) warn(ctx context.Context, runtime, text string) {
	if r.warned[runtime] {
		return
	}
	if r.warned == nil {
		r.warned = map[string]bool{}
	}
	r.warned[runtime] = true
	zerolog.Ctx(ctx).Warn().Str("runtime", runtime).Str("user", r.user.Username).Msg(text)
}

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

	// turn is held while /whoami is asked: one request serves all who wait, and
	// whoever waits can be stopped.
	turn chan struct{}

	mu    sync.Mutex
	user  kernelci.User
	asked time.Time
	// warned of a runtime, or "" of the token.
	warned map[string]bool
}

func newRights(mode string, token bool, api API) *rights {
	return &rights{mode: mode, token: token, api: api, turn: make(chan struct{}, 1), warned: map[string]bool{}}
}

func (r *rights) mayEdit(ctx context.Context, runtime string) (bool, error) {
	switch {
	case r.mode == On:
		return true, nil
	case r.mode == Off:
		return false, nil
	case !r.token:
		r.warn(ctx, "", "nodes are not finished: there is no kernelci.api_token (KERNELCI_API_TOKEN); KernelCI will time them out")
		return false, nil
	}
	u, err := r.who(ctx)
	if err != nil {
		return false, err
	}
	may := u.MayEdit(runtime)
	if !may && u.Username != "" {
		r.warn(ctx, runtime, "nodes are not finished: the token's user is in no group that may edit nodes of this runtime; KernelCI will time them out")
	}
	return may, nil
}

// who is the token's user, asked now or a while ago; nobody when the token is
// refused.
func (r *rights) who(ctx context.Context) (kernelci.User, error) {
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return kernelci.User{}, context.Cause(ctx)
	}
	if u, known := r.known(); known {
		return u, nil
	}
	u, err := r.api.WhoAmI(ctx)
	var ae *kernelci.APIError
	switch {
	case errors.As(err, &ae) && (ae.Status == http.StatusUnauthorized || ae.Status == http.StatusForbidden):
		r.warn(ctx, "", "nodes are not finished: kernelci-api refuses the token; KernelCI will time them out")
		u = kernelci.User{}
	case err != nil:
		return u, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.user, r.asked = u, time.Now()
	return u, nil
}

func (r *rights) known() (kernelci.User, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.user, !r.asked.IsZero() && time.Since(r.asked) < askAgain
}

// doubt makes the next question go to the API.
func (r *rights) doubt() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = time.Time{}
}

func (r *rights) warn(ctx context.Context, runtime, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.warned[runtime] {
		return
	}
	r.warned[runtime] = true
	zerolog.Ctx(ctx).Warn().Str("runtime", runtime).Str("user", r.user.Username).Msg(text)
}

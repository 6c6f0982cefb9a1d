// Package preflight looks at the API token before it is needed, and says what
// will not work with it.
package preflight

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/kernelci"
)

// timeout keeps a hanging API from holding up the first poll.
const timeout = 10 * time.Second

// API is the part of kernelci.Client that is asked.
type API interface {
	WhoAmI(ctx context.Context) (kernelci.User, error)
}

// Check logs what the token may do. It is never fatal: reading needs no token.
func Check(ctx context.Context, api API, haveToken bool, runtime string) {
	log := zerolog.Ctx(ctx)
	if !haveToken {
		log.Warn().Msg("No kernelci.api_token (KERNELCI_API_TOKEN): jobs are read without one, but claims will not be made and nodes not be finished")
		return
	}
	asking, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	user, err := api.WhoAmI(asking)
	var refused *kernelci.APIError
	switch {
	case ctx.Err() != nil:
	case errors.As(err, &refused) && (refused.Status == http.StatusUnauthorized || refused.Status == http.StatusForbidden):
		log.Warn().Err(err).Msg("kernelci-api refuses kernelci.api_token: jobs are read all the same, but claims will not be made and nodes not be finished. Has it expired, or is it another instance's?")
	case err != nil:
		log.Warn().Err(err).Msg("Could not check kernelci.api_token with /whoami; going on")
	case !user.MayEdit(runtime):
		log.Warn().Str("user", user.Username).Strs("groups", user.Groups).
			Msgf("The user of kernelci.api_token is not a superuser and in none of the groups %s: claiming and finishing nodes of runtime %s will be refused. Ask the KernelCI team for the group.",
				strings.Join(kernelci.EditGroups(runtime), ", "), runtime)
	default:
		log.Info().Str("user", user.Username).Msg("kernelci.api_token may edit this runtime's nodes")
	}
}

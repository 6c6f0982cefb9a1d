package translator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/kernelci"
	"github.com/pullab/pullab/pkg/queue"
	"github.com/pullab/pullab/pkg/topology"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/translator/internal/admission"
	"github.com/pullab/pullab/services/translator/internal/jobdef"
	"github.com/pullab/pullab/services/translator/internal/lineage"
	"github.com/pullab/pullab/services/translator/internal/planner"
)

// translationFailed is the predecessor's wording, which operators know.
const translationFailed = "Translation failed"

// plan makes and publishes the plan of an admitted job.
func (s *Service) plan(ctx context.Context, origin *pullabv1.Origin, offered time.Time, c *admission.Case) error {
	job, err := s.job(ctx, origin, c)
	if err != nil {
		return err
	}
	plan, err := s.translate(ctx, job, offered, c.Node)
	if err != nil {
		return err
	}
	subject := topology.RunSubject(plan.GetExecutor(), plan.GetArch(), origin.GetNodeId())
	fresh, err := s.out.Publish(ctx, subject, origin.GetNodeId(), plan.GetRunId(), plan)
	switch {
	case errors.Is(err, queue.ErrTooLarge):
		// The planner keeps its part small, so the offer itself must be huge.
		return queue.Drop(err)
	case err != nil:
		return queue.Retry(fmt.Errorf("publishing the plan of node %s: %w", origin.GetNodeId(), err))
	}
	s.tell(ctx, plan, fresh)
	if r := plan.GetRefusal(); r != nil {
		return c.Decide(ctx, admission.Refused, r.GetErrorCode()+": "+r.GetErrorMsg())
	}
	return c.Decide(ctx, admission.Planned, "")
}

func (s *Service) tell(ctx context.Context, plan *pullabv1.RunPlanned, fresh bool) {
	log := zerolog.Ctx(ctx)
	if r := plan.GetRefusal(); r != nil {
		log.Warn().Str("run", plan.GetRunId()).Str("error_code", r.GetErrorCode()).Bool("fresh", fresh).
			Msgf("%s for node %s: %s", translationFailed, plan.GetOrigin().GetNodeId(), r.GetErrorMsg())
		return
	}
	log.Info().Str("run", plan.GetRunId()).Str("executor", plan.GetExecutor()).Str("arch", plan.GetArch()).
		Str("build_id", plan.GetBuild().GetBuildId()).Dur("run_timeout", plan.GetRunTimeout().AsDuration()).Bool("fresh", fresh).
		Msgf("Planned %s on %s", plan.GetOrigin().GetNodeName(), plan.GetMachine().GetPlatform())
}

// job gathers what the planner needs beside the definition.
func (s *Service) job(ctx context.Context, origin *pullabv1.Origin, c *admission.Case) (planner.Job, error) {
	node := c.Node
	chain, err := s.walker.Walk(ctx, node)
	if err != nil {
		return planner.Job{}, admission.Verdict("resolving the build of node "+node.ID, err)
	}
	build := planner.BuildOf(chain, s.planner)
	if chain.Kbuild == nil {
		zerolog.Ctx(ctx).Warn().Msgf("Could not resolve build_id for node %s: %v. The job has no kbuild ancestor within %d hops, "+
			"or kernelci.api_token is missing for a protected /node/{id}; its rows will have the build_id %s.",
			node.ID, chain.Broken, lineage.MaxHops, build.GetBuildId())
	}
	return planner.Job{
		Origin: origin, RunID: c.RunID(), JobID: c.JobID(), Arch: s.fileArch(origin, node), Build: build,
		FinishBefore: node.Timeout, Now: time.Now(),
	}, nil
}

// translate gives the plan, or the refusal as a plan. Its errors are those that
// may pass.
func (s *Service) translate(ctx context.Context, job planner.Job, offered time.Time, node *kernelci.Node) (*pullabv1.RunPlanned, error) {
	def, err := s.definition(ctx, job.Origin, node)
	var later *jobdef.UnavailableError
	var refused *jobdef.RefusedError
	var malformed *jobdef.DecodeError
	switch {
	case errors.As(err, &later):
		return s.unavailable(job, later, offered)
	case errors.As(err, &refused), errors.As(err, &malformed):
		return planner.Refused(job, &planner.Refusal{Code: planner.InvalidJobParams, Message: err.Error()}), nil
	case err != nil:
		return nil, queue.Retry(fmt.Errorf("fetching the job definition of node %s: %w", node.ID, err))
	}
	if len(def.Unknown) > 0 {
		zerolog.Ctx(ctx).Info().Strs("parts", def.Unknown).Msg(jobdef.UnusedParts)
	}
	plan, err := planner.Plan(job, def, s.catalog, s.planner)
	var refusal *planner.Refusal
	if errors.As(err, &refusal) {
		return planner.Refused(job, refusal), nil
	}
	return plan, err
}

// definition reads the one that the node names now; the offer may be older.
func (s *Service) definition(ctx context.Context, origin *pullabv1.Origin, node *kernelci.Node) (*jobdef.Definition, error) {
	location := node.Artifacts["job_definition"]
	if location == "" {
		location = origin.GetJobDefinitionUrl()
	}
	if location == "" {
		return nil, &jobdef.RefusedError{Reason: "missing required artifacts.job_definition: the node names no job definition"}
	}
	return s.fetcher.Read(ctx, location)
}

// unavailable tries again until patience with this offer ends. That it cannot be fetched is then
// the lab's failure, not the job's, and KernelCI will offer the job anew.
func (s *Service) unavailable(job planner.Job, err *jobdef.UnavailableError, offered time.Time) (*pullabv1.RunPlanned, error) {
	tried := job.Now.Sub(offered)
	if tried < s.cfg.Translator.FetchPatience {
		if err.RetryAfter > 0 {
			return nil, queue.RetryAfter(err.RetryAfter, err)
		}
		return nil, queue.Retry(err)
	}
	return planner.Refused(job, &planner.Refusal{
		Code:    planner.Infrastructure,
		Message: fmt.Sprintf("the job definition could not be fetched for %s: %v", tried.Round(time.Second), err),
	}), nil
}

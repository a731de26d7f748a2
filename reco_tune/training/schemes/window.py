"""ReCo's scheme: a window with gradient after a prefix without."""

from reco_tune.training.schemes.base import Scheme
from reco_tune.windows import WindowSchedule, WindowSpan


class Window(Scheme):
    """A window drawn from the stride grid: it alone is computed with gradient, and all of it has a loss."""

    def _windows(self) -> WindowSchedule:
        window, training = self.experiment.window, self.experiment.training
        assert window.length_tokens is not None and window.stride_tokens is not None
        return WindowSchedule(
            self.experiment.grid.num_tokens,
            window.length_tokens,
            window.stride_tokens,
            window.first_frame_probability,
            training.seed,
            training.steps,
            window.schedule,
            window.full_fraction,
        )

    def computed(self, span: WindowSpan) -> WindowSpan:
        return span

    def judged(self, span: WindowSpan) -> WindowSpan:
        return span

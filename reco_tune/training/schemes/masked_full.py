"""A control for windows: a window's loss at the cost of a full step."""

from reco_tune.training.schemes.window import Window
from reco_tune.windows import WindowSpan


class MaskedFull(Window):
    """Computes the whole clip with gradient, but only the window has a loss. So no work is saved."""

    def computed(self, span: WindowSpan) -> WindowSpan:
        return WindowSpan(0, self.model_settings.num_tokens)

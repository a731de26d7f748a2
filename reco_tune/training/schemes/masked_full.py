"""A control for windows: the same loss over the full graph."""

from reco_tune.training.schemes.window import Window
from reco_tune.windows import WindowSpan


class MaskedFull(Window):
    """The clip is computed with gradient, the window alone has a loss: nothing is saved."""

    def computed(self, span: WindowSpan) -> WindowSpan:
        return WindowSpan(0, self.model_settings.num_tokens)

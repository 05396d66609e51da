"""Predicts the hands of clips and videos with a checkpoint of stage 1."""

from __future__ import annotations

import numpy as np

from arvrm.interface import CONTROL_HZ

_BATCH = 16


class HandPredictor:
    """A stage-1 checkpoint that predicts the keypoints of whole clips.

    Raises:
        UserError: the checkpoint is missing, damaged or of stage 2.
    """

    def __init__(self, checkpoint: str) -> None:
        from arvrm.model.checkpoint import load_checkpoint
        from arvrm.model.encoders import TextEncoder

        self.checkpoint = load_checkpoint(checkpoint, kind="keypoint_vlm")
        metadata = self.checkpoint.metadata
        self.history, self._control_stride = metadata.history, metadata.stride
        self.text = TextEncoder(self.checkpoint.config.text)
        self.image_size = metadata.images["rgb_static"]

    def stride(self, fps: float) -> int:
        """Steps of a clip at `fps` from a frame to the one that is predicted from it: the nearest whole number."""
        from arvrm.windows import exact_stride

        return int(np.rint(exact_stride(self._control_stride, fps, CONTROL_HZ)))

    def predict(
        self,
        text: str,
        keypoints: np.ndarray,
        visible: np.ndarray,
        images: np.ndarray,
        image_steps: np.ndarray,
        fps: float,
        from_here: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Predict the hand one stride from each image.

        Args:
            keypoints: (N, K, 3) in pixels of `images`; visible: (N, K).
            images: (F, H, W, 3) uint8 at the steps `image_steps` (F,).
            from_here: return at each image what is predicted from it; else what was predicted for it a stride before.

        Returns:
            predicted (F, K', 3), pixels, and known (F, K') bool, whether there was anything to go on from; keypoints
            and visible at the images, (F, K', 3) and (F, K'). K' is the model's.
        """
        import torch

        from arvrm.hands.coordinates import denormalise_keypoints, normalise_keypoints
        from arvrm.windows import choose_hand, exact_stride

        height, width = images.shape[1:3]
        points, seen = choose_hand(keypoints, visible, self.checkpoint.config.keypoints)
        normal = normalise_keypoints(np.where(seen[..., None], points, 0.0), height, width)
        stride = self.stride(fps)
        now = image_steps if from_here else image_steps - stride
        exact = exact_stride(self._control_stride, fps, CONTROL_HZ)
        back = np.floor(exact * np.arange(self.history - 1, -1, -1) + 1e-6).astype(np.int64)
        steps = now[:, None] - back
        mask = steps >= image_steps[0]
        rows = np.maximum(steps, image_steps[0])
        shown = np.searchsorted(image_steps, rows, side="right") - 1
        # A window that lies wholly before the clip has nothing to attend to: the first frame stands in, and `known` is
        # False.
        attended = mask.copy()
        attended[:, -1] = True
        words, words_mask = self.text.tokens([text])
        found = []
        with torch.inference_mode():
            for first in range(0, len(now), _BATCH):
                part = slice(first, first + _BATCH)
                count = len(now[part])
                batch = {
                    "text": words.expand(count, -1, -1),
                    "text_mask": words_mask.expand(count, -1),
                    "static": torch.from_numpy(images[shown[part]]),
                    "keypoints": torch.from_numpy(normal[rows[part]]),
                    "visible": torch.from_numpy(seen[rows[part]]),
                    "frame_mask": torch.from_numpy(attended[part]),
                }
                found.append(self.checkpoint.model(batch)["next_keypoints_predicted"].float().numpy())
        predicted = denormalise_keypoints(np.concatenate(found), height, width)
        known = (seen[rows] & mask[..., None]).any(axis=1)
        return predicted, known, points[image_steps], seen[image_steps]

// Published tables of noise levels. Port of diffusion/schedules/published.py,
// which names the paper and where it tells them.

/** Ten-step noise levels sigma/alpha by the kind of model. */
export const AYS = {
  SD1: [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029],
  SDXL: [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029],
  SVD: [700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002],
};

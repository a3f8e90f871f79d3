// Pointing at a sentence, or tapping it, shows only its region. Pointing at a region shows its sentences.
for (const row of document.querySelectorAll('.linked')) {
  const light = region => {
    row.classList.toggle('lit', region !== null);
    for (const part of row.querySelectorAll('[data-region]')) {
      part.classList.toggle('on', part.dataset.region === region);
    }
  };
  for (const part of row.querySelectorAll('li[data-region], .box[data-region]')) {
    for (const event of ['mouseenter', 'focus', 'click']) {
      part.addEventListener(event, () => light(part.dataset.region));
    }
    for (const event of ['mouseleave', 'blur']) part.addEventListener(event, () => light(null));
  }
}

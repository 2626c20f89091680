import { Empty } from "../ui/empty.tsx";
import { Head } from "../ui/shell.tsx";

export function NotFoundPage({ path }: { path: string }) {
  return (
    <>
      <Head crumbs={[{ name: "Not found" }]} />
      <div class="page">
        <Empty title={`There is no page /${path}`}>
          Press <kbd>/</kbd> to search, or go to the <a href="/">overview</a>.
        </Empty>
      </div>
    </>
  );
}
